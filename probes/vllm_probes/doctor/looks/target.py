"""The vLLM that a shell would start, and the Python and torch behind it; nothing of it is imported."""

import json
import re
import shutil
import subprocess
from pathlib import Path

from vllm_probes.doctor.facts import TargetFacts

HEAD_BYTES = 4096
_LONG_SHEBANG = re.compile(r"'''exec' (?:\"([^\"]+)\"|(\S+))")
_ASK = """
import json, os, sys
from importlib import metadata

def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

files = (os.path.join(folder, "torch", "version.py") for folder in sys.path if folder)
file = next(filter(os.path.isfile, files), None)
found = {"python": ".".join(map(str, sys.version_info[:3])), "vllm": version("vllm"), "torch": version("torch")}
print(json.dumps({**found, "torch_source": open(file).read() if file else ""}))
"""
"""Importing torch would take seconds, and starts the driver."""


def look() -> TargetFacts:
    """What its Python says of itself and of the packages it would import."""
    script = shutil.which("vllm")
    python = target_python()
    if script is None or python is None:
        return TargetFacts(script=script)
    command = [python, "-c", _ASK]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        found = json.loads(done.stdout.splitlines()[-1])
    except OSError as error:
        return TargetFacts(script=script, interpreter=python, error=error.strerror)
    except (ValueError, IndexError):
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        return TargetFacts(script=script, interpreter=python, error=said[-1])
    return TargetFacts(script=script, interpreter=python, **found)


def target_python() -> str | None:
    """The Python that runs the `vllm` on PATH; None: there is none, or it is no Python script."""
    script = shutil.which("vllm")
    if script is None:
        return None
    try:
        with Path(script).open("rb") as file:
            name = interpreter(file.read(HEAD_BYTES))
    except OSError:
        return None
    return name and (shutil.which(name) or name)


def interpreter(head: bytes) -> str | None:
    """The Python of a script that begins like this: a path, or a name to be looked for on PATH.

    Where a path is too long for `#!` or has blanks, pip and uv write a shell line that runs it (distlib, scripts.py).
    """
    lines = head.decode(errors="surrogateescape").split("\n")
    words = lines[0].removeprefix("#!").split() if lines[0].startswith("#!") else []
    if words and words[0].rpartition("/")[2] == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    if words and words[0].rpartition("/")[2] == "sh" and (found := _LONG_SHEBANG.match("".join(lines[1:2]))):
        words = [found[1] or found[2]]
    return words[0] if words and words[0].rpartition("/")[2].startswith(("python", "pypy")) else None
