"""The evidence of a stall in one folder, to be sent to somebody: without secrets."""

import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from vllm_probes import __version__
from vllm_probes.events import VerdictChanged, encode
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.launch.redact import redact_text
from vllm_probes.model import SessionModel

TAIL_LINES = 2000
TAIL_BYTES = 2 << 20
"""At most so much of the log, however long its lines are."""


def tables(model: SessionModel, verdict: VerdictChanged, vllm_version: str | None) -> dict[str, bytes]:
    """The files of a bundle that are made from what is known now, by name.

    Command line, environment differences and debug settings are those of `attempt_started`, which has no secrets.
    """
    attempt, gpus = model.attempt, model.gpus
    doing = attempt.doing.processes if attempt and attempt.doing else []
    versions = {
        "vllm_tui": __version__,
        "vllm": vllm_version,
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "driver": gpus.driver,
        "cuda": gpus.cuda,
    }
    found: dict[str, object] = {
        "processes.json": {"processes": list(model.processes.values()), "doing": doing},
        "gpus.json": {"status": gpus.status, "cards": gpus.cards, "rows": gpus.rows, "faults": gpus.faults},
        "versions.json": versions,
    }
    own = {"verdict.json": encode(verdict)} | ({"attempt.json": encode(attempt.launch)} if attempt else {})
    return own | {name: msgspec.json.format(msgspec.json.encode(table)) for name, table in found.items()}


SNAPSHOTS = "snapshots/"
"""Evidence may be a line of the log, too: that holds whatever vLLM has written, and only its end goes out, redacted."""


def write(folder: Path, session: SessionFolder, parts: Mapping[str, bytes], verdict: VerdictChanged, log: str) -> None:
    """Fill `folder`, which is made: the parts, the end of the log, and the stacks that the evidence names.

    Stacks keep their names relative to the session folder, so that the evidence names them here, too.

    Raises:
        OSError: something cannot be read or written.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, data in parts.items():
        (folder / name).write_bytes(data)
    (folder / "log-tail.txt").write_text(redact_text(tail(session.path / log)), "utf-8")
    for file in sorted({one.file for one in verdict.evidence if one.file and one.file.startswith(SNAPSHOTS)}):
        copy = folder / file
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(session.path / file, copy)


def tail(path: Path) -> str:
    """The last lines of a log; what is no UTF-8 is replaced."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read(TAIL_BYTES).decode(errors="replace").split("\n")
    return "\n".join(lines[-TAIL_LINES - 1 :])  # behind the last newline there is an empty one
