"""How the stacks of a run can be had: tried when it begins, and told then, not at a hang."""

import asyncio

from vllm_probes.events import RungsChecked
from vllm_probes.hook.sitecustomize import SIGUSR2
from vllm_probes.keeper.stream import Stream
from vllm_probes.rows import ProcessRef, ProcessRow
from vllm_probes.sensors.dumps import has_hook
from vllm_probes.sensors.py_spy import NoStacksError, ObstacleError, try_on
from vllm_probes.sensors.threads import signal_state

TRIES, TRY_EVERY_S = 10, 1.0
"""A Python that has just begun does not tell."""
_HOOKED = "Until then processes are asked to write their stacks down (SIGUSR2), which they do while they stand still."
_BARE = "Until then nobody sees what its processes do, and a hang is known only from outside."


async def tell_rungs(stream: Stream, *, bare: bool) -> None:
    """Try py-spy on the processes of the attempt that has just begun, until one tells.

    Only on those with the start-up hook, unless the run is `bare`: Yama may let py-spy into those alone.
    """
    attempt = stream.model.attempt
    for number in range(TRIES):
        await asyncio.sleep(TRY_EVERY_S)
        if attempt is None or stream.model.attempt is not attempt or attempt.over:
            return
        rows = [row for row in stream.model.processes.values() if not row.foreign and (bare or has_hook(row.pid))]
        if rows and await _tells(stream, rows[number % len(rows)], bare=bare):
            return


async def _tells(stream: Stream, row: ProcessRow, *, bare: bool) -> bool:
    is_readable = True
    try:
        await try_on(ProcessRef(pid=row.pid, process=row.process))
    except ObstacleError as obstacle:
        is_readable = False
        stream.trouble(str(obstacle), _BARE if bare else _HOOKED)
    except NoStacksError:
        return False
    is_armed = not bare and signal_state(row.pid, row.pid, SIGUSR2).is_caught
    stream.publish(RungsChecked(**stream.stamp(), py_spy=is_readable, hook=is_armed))
    return True
