"""`vllm-tui snapshot`: what a few looks have shown, for people and for programs."""

import asyncio
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from vllm_probes import snapshot
from vllm_probes.judges.glance import SeenProcess, Snapshot
from vllm_probes.judges.ranksets import render
from vllm_probes.keeper.folder import SessionFolder
from vllm_probes.sensors import foreign
from vllm_probes.sensors.close_look import CloseStack
from vllm_probes.sensors.foreign import ForeignError, Run
from vllm_probes.snapshot import Target
from vllm_tui.choosing import Chosen
from vllm_tui.format import UNKNOWN, json_text, percent, plural, printable, table

INNER_FRAMES, INNER_FRAMES_NATIVE = 12, 40
"""Of each group of stacks; the rest leads to the same loops everywhere. A call of a library may be many of its own."""


def look(chosen: Chosen, seconds: float | None) -> Snapshot:
    """Look at a run that is there now.

    Raises:
        ForeignError: it has ended.
    """
    if isinstance(chosen, SessionFolder):
        folder = chosen.snapshots / f"{chosen.attempt_count()}-{time.time():.0f}-snapshot"
        name = str(folder.relative_to(chosen.path))
        return asyncio.run(snapshot.take(_of_session(chosen), folder, name, seconds=seconds))
    with tempfile.TemporaryDirectory(prefix="vllm-tui-") as temporary:
        return asyncio.run(snapshot.take(snapshot.of_run(chosen), Path(temporary), None, seconds=seconds))


def look_closely(chosen: Chosen, *, native: bool, variables: bool) -> list[CloseStack]:
    """Native frames or variables of a run that is there now. Raises ForeignError."""
    target = _of_session(chosen) if isinstance(chosen, SessionFolder) else snapshot.of_run(chosen)
    return asyncio.run(snapshot.take_closely(target, native=native, variables=variables))


def with_native(seen: Snapshot, close: Sequence[CloseStack]) -> Snapshot:
    """The verdict stays: it rests on the calls of Python."""
    return replace(seen, groups=snapshot.merged(close))


def _of_session(folder: SessionFolder) -> Target:
    attached = folder.attached()
    if attached is not None and not folder.is_over():
        return snapshot.of_run(foreign.run_of(attached.pid))
    shim_pid = next(folder.shim_pids(), None)
    if shim_pid is None:
        name = shlex.quote(folder.path.name)
        raise ForeignError(f"Nothing of session {name} runs any more: `vllm-tui attach {name}` shows how it ended.")
    return snapshot.of_shim(shim_pid)


def as_json(seen: Snapshot, chosen: Chosen, close: Sequence[CloseStack]) -> str:
    """One object: what was looked at, the fields of `Snapshot`, and as `stacks` what was asked for beside it."""
    who: dict[str, Any] = {"session": None, "pid": None, "user": None}
    who |= (
        {"session": chosen.path.name} if isinstance(chosen, SessionFolder) else {"pid": chosen.pid, "user": chosen.user}
    )
    stacks = {"stacks": msgspec.to_builtins(close)} if close else {}
    return json_text({**who, **msgspec.to_builtins(seen), **stacks})


def as_text(seen: Snapshot, chosen: Chosen, close: Sequence[CloseStack], *, with_shares: bool) -> str:
    """Verdict, processes, where the time went if that was asked for, the stacks, equal ones once, and variables."""
    lines = [*_verdict_lines(seen, chosen), "", *_process_table(seen), *_error_lines(seen, close)]
    if with_shares:
        lines += ["", f"Where they were, of {plural(seen.look_count, 'look')} in {seen.observed_s:.1f} s:"]
        lines += [line for process in seen.processes for line in _share_lines(process)]
    variables = [line for stack in close for line in _variable_lines(stack)]
    return "\n".join([*lines, *_stack_lines(seen, INNER_FRAMES_NATIVE if close else INNER_FRAMES), *variables])


def _verdict_lines(seen: Snapshot, chosen: Chosen) -> Iterator[str]:
    word = (seen.health or UNKNOWN).upper()
    kind = f" ({seen.kind})" if seen.kind else ""
    yield printable(f"{word if seen.health else 'NOT KNOWN'}{kind}: {seen.summary}")
    if isinstance(chosen, Run) and seen.health is None:
        program = shlex.quote(shutil.which(sys.argv[0]) or sys.argv[0])
        yield f"For all of them at once: `sudo {program} snapshot {chosen.pid}`."


def _process_table(seen: Snapshot) -> list[str]:
    rows = [_process_cells(process) for process in seen.processes]
    return table([("PID", "PROCESS", "STATE", "DOES", "SINCE THE LOOK BEFORE", "WHERE"), *rows])


def _process_cells(process: SeenProcess) -> tuple[str, ...]:
    motion = {"frozen": "the same", "line": "another line", "function": "other calls"}.get(
        process.motion or "", UNKNOWN
    )
    where = process.frame or ("no stack: see below" if process.error else UNKNOWN)
    cells = (process.process, process.state, process.what or UNKNOWN, motion, where)
    return (str(process.pid), *map(printable, cells))


def _error_lines(seen: Snapshot, close: Sequence[CloseStack]) -> list[str]:
    """Of a process that gave nothing at all, why, and not also why it gave no more."""
    errors = {stack.pid: stack.error for stack in close} | {one.pid: one.error for one in seen.processes if one.error}
    said = [printable(error) for error in errors.values() if error]
    return ["", *said] if said else []


def _share_lines(process: SeenProcess) -> Iterator[str]:
    if process.shares:
        yield printable(f"{process.process} ({process.pid})")
    for share in process.shares:
        yield printable(f"  {percent(share.share):>6}  {share.doing:<15}  {share.frame or UNKNOWN}")


def _stack_lines(seen: Snapshot, inner_frames: int) -> Iterator[str]:
    for group in seen.groups:
        yield from ("", f"{printable(render(group.members))}:")
        yield from (f"    {printable(frame)}" for frame in group.frames[:inner_frames])
        if (more := len(group.frames) - inner_frames) > 0:
            yield f"    … called by {plural(more, 'call')} more"


def _variable_lines(stack: CloseStack) -> Iterator[str]:
    """The main thread, each call that has variables with them below it."""
    calls = [call for thread in stack.threads[:1] for call in thread.calls if call.variables]
    if calls:
        yield from ("", printable(f"{stack.process} ({stack.pid}), local variables of its main thread:"))
    for call in calls[:INNER_FRAMES]:
        yield printable(f"    {call.function} ({call.file}:{call.line})")
        yield from (printable(f"        {name} = {value}") for name, value in call.variables.items())
