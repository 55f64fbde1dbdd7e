"""What tests of `vllm-tui doctor` have in common."""

from pathlib import Path

import pytest

from vllm_probes.doctor.looks.hub import PROXIES

NAMES = ["CUDA_VISIBLE_DEVICES", "VLLM_HOST_IP", "MASTER_ADDR", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"]


def quieten(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the user's settings, and no request to the real hub."""
    for name in ("HF_ENDPOINT", *NAMES, *PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write_program(path: Path, text: str) -> Path:
    """An executable file, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
