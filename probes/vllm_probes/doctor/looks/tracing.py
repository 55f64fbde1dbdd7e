"""Whether py-spy can read stacks here: it is tried on real processes, since many rules can forbid it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vllm_probes.doctor.facts import Attempt, TracingFacts
from vllm_probes.doctor.looks.target import target_python
from vllm_probes.sensors.py_spy import find_py_spy, ptrace_scope

WAITING_PYTHON = """
import os, sys
if os.fork():
    os._exit(0)
os.write(1, b"%d\\n" % os.getpid())
sys.stdin.read()
"""
"""Its parent ends at once. It ends itself when nobody can write to its standard input any more."""


def look() -> TracingFacts:
    """Yama's default lets a process read only those below it (Documentation/admin-guide/LSM/Yama.rst), and vLLM is
    never below a py-spy that is started later: so it is tried on a process that is below neither py-spy nor us."""
    py_spy = find_py_spy()
    if py_spy is None:
        return TracingFacts()
    version = subprocess.run([py_spy, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    python = target_python()
    return TracingFacts(
        py_spy=py_spy,
        version=version.removeprefix("py-spy").strip() or None,
        ptrace_scope=ptrace_scope(),
        own=_attempt(py_spy, sys.executable),
        target=_attempt(py_spy, python) if python else None,
    )


def _attempt(py_spy: str, python: str) -> Attempt:
    try:
        with _orphan(python) as pid:
            command = [py_spy, "dump", "--nonblocking", "--pid", str(pid)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except (OSError, ValueError) as error:
        return Attempt(python=python, error=f"It could not be tried: {error}")
    said = done.stderr.partition("Stack backtrace:")[0].split()
    return Attempt(python=python, error=None if done.returncode == 0 else " ".join(said) or "It does not say why.")


@contextmanager
def _orphan(python: str) -> Iterator[int]:
    """The pid of a Python that waits, and whose parent is gone.

    Raises:
        OSError: this Python cannot be started.
        ValueError: it ended.
    """
    with subprocess.Popen(
        [python, "-I", "-S", "-c", WAITING_PYTHON], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout
        yield int(parent.stdout.readline())
