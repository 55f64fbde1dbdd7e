"""The provisioned vLLM is the one that the other tests believe in."""

import json
import subprocess

import pytest

from tests.real_vllm import VERSION, RealVllm


@pytest.mark.vllm
def test_the_provisioned_vllm_is_the_cpu_build_without_any_cuda_package(real_vllm: RealVllm) -> None:
    script = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    listed = subprocess.run([str(real_vllm.python), "-c", script], capture_output=True, check=True)
    versions: dict[str, str] = json.loads(listed.stdout)
    assert versions["vllm"] == f"{VERSION}+cpu"
    assert versions["torch"].endswith("+cpu")
    assert not [name for name in versions if name.startswith("nvidia-cuda")]
    assert "setproctitle" in versions


@pytest.mark.vllm
def test_the_tiny_model_is_smaller_than_a_megabyte(real_vllm: RealVllm) -> None:
    assert sum(file.stat().st_size for file in real_vllm.model.iterdir()) < 1_000_000
