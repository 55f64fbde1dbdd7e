"""What one dump of a stack does not tell: loops in Python or in native code, and the operator that a line calls."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from vllm_probes.judges.doing import Doing, doing, is_plain
from vllm_probes.judges.frames import load_frames
from vllm_probes.rows import ProcessRef, ThreadStack
from vllm_probes.sensors.source_line import MAX_CHARACTERS, source_line
from vllm_probes.sensors.stacks import capture

TABLE = load_frames()
OPERATORS = """
class _Operators:
    def __call__(self, *arguments):
        while True: pass
    def __getattr__(self, name):
        return self
ops = _Operators()
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("while True: pass", "python_loop"),
        ("while True: number += 1", "python_loop"),
        ("pow(3, 10 ** 9)", "native_loop"),
    ],
)
def test_a_loop_that_stays_on_one_line(
    line: str, expected: Doing, spawned: Spawn, wait_for: WaitFor, tmp_path: Path
) -> None:
    (tmp_path / "looping.py").write_text(f"def stuck(number):\n    {line}\nstuck(1)\n")
    run = spawned([sys.executable, str(tmp_path / "looping.py")])
    stack = wait_for(lambda: (found := _in(run.pid, "stuck", tmp_path)) and found.moves is not None and found)
    assert (doing(stack, TABLE.classify(stack), moved=False, machine="x86_64"), stack.moves) == (expected, False)
    assert stack.source == line


def test_a_loop_over_two_lines_moves(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    body = "def stuck(n):\n    while True:\n        n = max(n, 1)\n        n = min(n, 1)\nstuck(1)\n"
    run = spawned([sys.executable, "-c", body])
    wait_for(lambda: (stack := _in(run.pid, "stuck", tmp_path)) and stack.moves)


HOG = """
import threading
def hog():
    pow(3, 10 ** 9)
threading.Thread(target=hog, daemon=True).start()
threading.Event().wait()
"""


def test_who_holds_the_lock_of_the_interpreter(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    run = spawned([sys.executable, "-c", HOG])
    stack = wait_for(
        lambda: (found := _in(run.pid, "hog", tmp_path)) and found.owns_gil and found.moves is not None and found
    )
    assert (stack.state, stack.moves, stack.thread_id == run.pid) == ("R", False, False)


def test_the_operator_that_a_compiled_model_calls(spawned: Spawn, wait_for: WaitFor, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "_ops.py").write_text(OPERATORS)
    (tmp_path / "compiled.py").write_text(
        "from torch import _ops as torch\ndef call():\n    torch.ops._C.shm_allreduce.default(0, 1)\ncall()\n"
    )
    run = spawned([sys.executable, str(tmp_path / "compiled.py")], env={"PYTHONPATH": str(tmp_path)})
    stack = wait_for(lambda: _in(run.pid, "__call__", tmp_path))
    assert [frame.function for frame in stack.frames[:3]] == ["shm_allreduce", "__call__", "call"]
    assert TABLE.classify(stack).operation == "all_reduce"


def _in(pid: int, function: str, folder: Path) -> ThreadStack | None:
    """The first thread that is in that function."""
    [found] = asyncio.run(capture([ProcessRef(pid=pid, process="x")], folder / "stacks"))
    return next((one for one in found.threads if function in [frame.function for frame in one.frames[:2]]), None)


def test_a_line_of_source(tmp_path: Path, spawned: Spawn) -> None:
    file = tmp_path / "it's a file.py"
    file.write_text(f"first\n  second {'x' * 500}\n")
    own = spawned(["sleep", "100"]).pid

    def read(name: str, line: int) -> str | None:
        return asyncio.run(source_line(own, name, line))

    assert read(str(file), 1) == "first"
    assert read(str(file), 2) == f"second {'x' * 500}"[:MAX_CHARACTERS]
    assert [read(str(file), 3), read(str(file), 0), read("<string>", 1), read("/nowhere", 1)] == [None] * 4


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("while True: pass", True),
        ("while number < 10:", True),
        ("elif number:", True),
        ("else:", True),
        ("number += 1", True),
        ("continue", True),
        ("mask = mask & 255 | flag ^ other >> 3", True),
        ("half //= 2", True),
        ("number = 31 * number + 7", True),
        ("number *= 1024", True),
        ("number *= 1025", False),
        ("number *= number", False),
        ("number = number * other", False),
        ("number = number * 'text'", False),
        ("number = 1 << number", False),
        ("while True: wait()", False),
        ("while time.monotonic() < self.end:", True),
        ("while len(found) < count and not lock.locked(): pass", True),
        ("while len(sorted(found)) < 2:", False),
        ("while calls[0]() < 2:", False),
        ("number **= 2", False),
        ("while not self.done: pass", True),
        ("queue.items()", False),
        ("for one in everything:", False),
        ("import torch", False),
        ("@decorator", False),
        ("\0", False),
        ("", False),
    ],
)
def test_what_runs_nothing_but_python(source: str, expected: bool) -> None:
    assert is_plain(source) is expected
