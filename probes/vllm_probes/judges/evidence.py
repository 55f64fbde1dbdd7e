"""What bears a verdict out: how long nothing has moved, how GPUs differ, what each process does, and the file of it."""

from collections.abc import Iterator, Mapping, Sequence

from vllm_probes.events import Event, LogRecorded, StacksCaptured
from vllm_probes.judges.culprits import Hang, Standing, said_together
from vllm_probes.judges.gpu_table import gpu_picture
from vllm_probes.log.line import parse_line
from vllm_probes.rows import Evidence, GpuRow


def evidence(
    event: Event,
    hang: Hang,
    standings: Sequence[Standing],
    what: str,
    since: float,
    gpus: Mapping[int, GpuRow],
    *,
    is_attached: bool,
) -> Iterator[Evidence]:
    """The culprits first. `what` has not moved since `since` (unix seconds); `is_attached`: that is when the run was
    attached to, and before it nobody knows."""
    quiet_s = f"{event.time - since:.0f} s"
    how_long = f"for at least {quiet_s}, since it was attached to" if is_attached else f"for {quiet_s}"
    yield Evidence(signal=what, value=how_long, since=since)
    if picture := gpu_picture(gpus):
        yield Evidence(signal="GPUs", value=picture)
    files = {file.pid: file.file for file in event.stacks} if isinstance(event, StacksCaptured) else {}
    others = tuple(one for one in standings if one not in hang.culprits)
    for names, said, first in [*said_together(hang.culprits), *said_together(others)]:
        yield Evidence(signal=names, value=said, since=since, file=files.get(first.row.pid))


def exception(event: LogRecorded, log: str) -> Evidence:
    """What a process logged before it went idle, in the file `log`."""
    line_number = event.exception_line_number or event.line_number
    said = parse_line(event.line or event.message).message.strip()
    return Evidence(
        signal=f"exception of {event.process or event.pid}",
        value=f"{said} (line {line_number} of the log)",
        since=event.time,
        file=log or None,
    )
