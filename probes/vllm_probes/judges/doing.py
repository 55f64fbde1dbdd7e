"""What a thread does at this moment, in one word, and where in its program it is."""

import ast
from typing import Literal

from vllm_probes.judges.frame_names import OPERATORS, is_standard_library, last_name
from vllm_probes.judges.frames import Classified, FrameClass
from vllm_probes.judges.syscalls import NO_DESCRIPTOR as NO_DESCRIPTOR
from vllm_probes.judges.syscalls import Wait, wait_of
from vllm_probes.rows import Frame, ThreadStack

Doing = Literal[
    "stopped",
    "collective",
    "gpu_sync",
    "compile",
    "idle",
    "uninterruptible",
    "subprocess",
    "socket",
    "read",
    "sleep",
    "lock",
    "python_loop",
    "native_loop",
    "unknown",
]

_BY_FRAME: dict[FrameClass, Doing] = {
    "collective": "collective",
    "gpu_sync": "gpu_sync",
    "compile": "compile",
    "idle": "idle",
}
_PLAIN = (
    *(ast.Module, ast.Expr, ast.Pass, ast.Continue, ast.Break, ast.While, ast.If, ast.Assign, ast.AugAssign, ast.Name),
    *(ast.AnnAssign, ast.Constant, ast.expr_context, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.UnaryOp),
    *(ast.unaryop, ast.BinOp, ast.Add, ast.Sub, ast.Mod, ast.FloorDiv, ast.Mult),
    *(ast.BitAnd, ast.BitOr, ast.BitXor, ast.RShift, ast.Attribute, ast.Call),
)
"""Nodes of a line that runs nothing but Python: no power, no item, and of calls the brief ones alone."""
_BRIEF = frozenset(
    (
        *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"),
        *("len", "isinstance", "id", "getpid", "get_ident", "locked", "query"),
    )
)
"""Native functions, by their last name, that loops ask again and again; one in Python has a frame of its own."""
_SMALL = 1024
"""Products with a constant up to this are plain: those of two big numbers are long native work."""
_CHILD_FRAMES = {"multiprocessing/process.py": ("join",), "multiprocessing/popen_fork.py": ("wait", "poll")}
_WAITS_FOR_CHILD: frozenset[Wait | None] = frozenset(("child", "file", "poll", "sleep"))


def doing(thread: ThreadStack, classified: Classified, *, moved: bool | None, machine: str = "x86_64") -> Doing:
    """The first of `Doing` that fits.

    `moved`: whether the line of the innermost frame is another one than a moment before; None: it was not looked at.
    Every pair of looks that shows another line counts, since a loop of two lines is mostly caught on the same one; one
    of a single line is known by its source.

    Frames decide what they prove (`frames`), the number of the system call the rest:

    * Reading, writing, and opening are `read`, unless the descriptor is a socket's.
    * poll, select and epoll are `read`, too, where what they wait for is known and no socket; the notifiers of event
      loops and ZMQ (`anon_inode`) stand for sockets. What is not known is taken for a `socket`: hardly anything else is
      polled, and pipes of children are known by their frames. A poll on nothing is `sleep`.
    * A wait for a child is a `subprocess` however Python does it: wait4, a read of the child's output, or short sleeps.
    * A file lock is a `lock`, be it flock, fcntl, or a library that looks for it between short sleeps.
    * A call that is not known, a page fault, or a wait in a driver (ioctl) is `unknown`.
    """
    if thread.state in ("T", "t"):
        return "stopped"
    wait = wait_of(thread, machine)
    is_for_child = _is_for_child(thread, wait)
    by_frame = _BY_FRAME.get(classified.class_)
    if by_frame and not (by_frame == "compile" and wait == "sleep" and not is_for_child):
        return by_frame
    if thread.state == "D":
        return "uninterruptible"
    if is_for_child:
        return "subprocess"
    if _is_running(thread, wait):
        return _running(thread, moved=moved)
    if wait == "sleep" and classified.class_ == "file_lock":
        return "lock"
    return _waiting(wait, thread.descriptor or "") if wait else _by_frames(thread, classified)


def place(thread: ThreadStack) -> str | None:
    """`function (file:line)` of the innermost frame outside the standard library, else of the innermost; None: none."""
    frames = [one for one in thread.frames if not one.file.startswith(OPERATORS)]
    frame = next((one for one in frames if not is_standard_library(one.file)), None)
    frame = frame or next(iter(frames), None)
    return None if frame is None else f"{last_name(frame.function)} ({frame.file}:{frame.line})"


def _is_running(thread: ThreadStack, wait: Wait | None) -> bool:
    return thread.state == "R" or wait == "yield" or (thread.state is None and thread.active is True)


def _running(thread: ThreadStack, *, moved: bool | None) -> Doing:
    if moved or thread.moves or is_plain(thread.source or ""):
        return "python_loop"
    return "unknown" if moved is None and thread.moves is None else "native_loop"


def is_plain(source: str) -> bool:
    """Whether a line of source is Python alone: nothing on it can run native code for long."""
    for form in (source, f"{source} pass", f"if True: pass\n{source} pass"):
        try:
            tree = ast.parse(form)
        except (SyntaxError, ValueError):
            continue
        return bool(source) and all(
            isinstance(node, _PLAIN) and not _is_product(node) and not _is_long_call(node) for node in ast.walk(tree)
        )
    return False


def _is_long_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name not in _BRIEF


def _is_product(node: ast.AST) -> bool:
    """Whether it multiplies by anything but a small number."""
    if not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Mult)):
        return False
    factors = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    numbers = (one.value for one in factors if isinstance(one, ast.Constant))
    return not any(isinstance(number, int | float) and abs(number) <= _SMALL for number in numbers)


def _waiting(wait: Wait, descriptor: str) -> Doing:
    match wait:
        case "child":
            return "subprocess"
        case "socket":
            return "socket"
        case "poll":
            return "socket" if descriptor.partition(":")[0] in ("", "socket", "anon_inode") else "read"
        case "file":
            return "socket" if descriptor.startswith("socket:") else "read"
        case "open":
            return "read"
        case "sleep":
            return "sleep"
        case "lock" | "file_lock":
            return "lock"
    return "unknown"


def _by_frames(thread: ThreadStack, classified: Classified) -> Doing:
    """Where the kernel does not tell which call it is (seccomp, another user's process)."""
    return "lock" if thread.syscall is None and classified.class_ in ("lock", "file_lock") else "unknown"


def _is_for_child(thread: ThreadStack, wait: Wait | None) -> bool:
    """Whether the end of the stack is the standard library's wait for a child process."""
    return wait in _WAITS_FOR_CHILD and any(
        frame.file == "subprocess.py" or last_name(frame.function) in _CHILD_FRAMES.get(frame.file, ())
        for frame in _library_end(thread)
    )


def _library_end(thread: ThreadStack) -> list[Frame]:
    """The innermost frames, as far as they belong to the standard library."""
    end = next((at for at, frame in enumerate(thread.frames) if not is_standard_library(frame.file)), None)
    return thread.frames[:end]
