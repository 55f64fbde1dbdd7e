"""Memory, limits and disks of this host, against what vLLM needs of them."""

import shlex
from collections.abc import Callable

from vllm_probes.doctor.check import Check, note, ok, plural, problem, size, warning
from vllm_probes.doctor.facts import DiskFacts, GpuFacts, LimitFacts, Place, ShmFacts

DOCKER_SHM_BYTES = 64 << 20
"""Docker's default (docker run, `--shm-size`)."""
RING_BYTES = 240 << 20
"""Free space without which vLLM 0.32 refuses to make a worker's ring of 10 chunks of 24 MiB (`check_shm_free_space` in
distributed/device_communicators/shm_broadcast.py)."""
SHM_COMFORT_BYTES = 1 << 30
"""For the rings of several workers, and NCCL's segments."""

FILES_WANTED = 65535
"""To which `vllm serve` raises its own soft limit (vLLM 0.32, `set_ulimit` in utils/system_utils.py)."""
FILES_NEEDED = 256
"""Measured with vLLM 0.32 and two ranks: a worker holds 104 at rest; a limit of 64 ends it at start, 256 do not."""
TASKS_WANTED = 2000
TASKS_NEEDED = 200
"""Measured with vLLM 0.32 on two cores: 25 threads for server and engine, 48 for each worker, more on more cores."""

SESSION_BYTES = 1 << 30
HUB_BYTES = 10 << 30
TEMP_BYTES = 1 << 30
"""Sockets of vLLM, and what torch compiles (/tmp/torchinductor_USER)."""
SHOWN_FILES = 20


def judge_shm(shm: ShmFacts, gpus: GpuFacts | None) -> Check:
    """/dev/shm, through which the workers of one host talk. One GPU needs no workers."""
    if shm.free_bytes is None or shm.total_bytes is None:
        means = "vLLM on more than one GPU does not start."
        return problem("shm", "There is no /dev/shm.", means, "sudo mount -t tmpfs -o size=16G tmpfs /dev/shm")
    if shm.total_bytes == 0:  # tmpfs without a limit says so (tmpfs(5))
        return ok("shm", "/dev/shm has no limit.")
    what = f"{size(shm.free_bytes)} of {size(shm.total_bytes)} are free in /dev/shm."
    if shm.free_bytes >= SHM_COMFORT_BYTES:
        return ok("shm", what)
    if shm.total_bytes > SHM_COMFORT_BYTES:
        fix = "Remove what nobody uses any more: `ls -l /dev/shm`"
    elif shm.total_bytes <= DOCKER_SHM_BYTES:
        fix = "Start the container with `docker run --shm-size 16g …` or `docker run --ipc=host …`."
    else:
        fix = "sudo mount -o remount,size=16G /dev/shm"
    if shm.free_bytes < RING_BYTES and (gpus is None or len(gpus.cards) != 1):
        return problem("shm", what, f"Tensor parallelism needs {size(RING_BYTES)} for a worker to start.", fix)
    return warning("shm", what, "Several workers, or NCCL's segments, may find too little.", fix)


def judge_shm_leftovers(shm: ShmFacts) -> Check:
    """Files that killed processes have left in /dev/shm; they take up memory until somebody removes them."""
    check_id, count = "shm-leftovers", len(shm.leftovers)
    if not count:
        return ok(check_id, "Nothing of dead processes is left in /dev/shm.")
    what = f"{plural(count, 'file')} in /dev/shm ({size(shm.leftover_bytes)}) that no process here has open."
    means = "They take up memory until they are removed."
    if count > SHOWN_FILES:
        means += f" The command takes the first {SHOWN_FILES}."
    if not shm.sees_host:
        means += " Processes outside of this container are not seen: with --ipc=host look there first."
    return note(check_id, what, means, shlex.join(["rm", "--", *shm.leftovers[:SHOWN_FILES]]))


def judge_open_files(limits: LimitFacts) -> Check:
    """Each request takes a descriptor, each worker some hundred."""
    check_id, soft, hard = "open-files", limits.files_soft, limits.files_hard
    what = f"{_limit(soft)} open files for a process, {_limit(hard)} at most (`ulimit -n`, `ulimit -Hn`)."
    if hard is None or hard >= FILES_WANTED:
        return ok(check_id, what)
    fix = (
        f"Raise the hard limit: `docker run --ulimit nofile={FILES_WANTED} …` in a container, else a line "
        f"`* hard nofile {FILES_WANTED}` in /etc/security/limits.conf and a new login."
    )
    if hard < FILES_NEEDED:
        return problem(check_id, what, "vLLM does not start: `Too many open files`.", fix)
    means = f"`vllm serve` wants {FILES_WANTED}; with many requests at a time it meets `Too many open files`."
    return warning(check_id, what, means, fix)


def judge_locked_memory(limits: LimitFacts) -> Check:
    """RDMA registers memory, which locks it (ibv_reg_mr(3)); without RDMA devices nothing needs this."""
    check_id = "locked-memory"
    what = f"{_bytes(limits.locked_bytes)} of memory may be locked (`ulimit -l`)"
    if limits.locked_bytes is None or limits.can_lock:
        return ok(check_id, f"{what}{', and CAP_IPC_LOCK lifts that' if limits.locked_bytes is not None else ''}.")
    if not limits.rdma_devices:
        return ok(check_id, f"{what}; there is no RDMA device that needs it.")
    devices = ", ".join(limits.rdma_devices)
    means = "NCCL cannot register its buffers with them, and fails with `unhandled system error` across nodes."
    fix = (
        "In a container: `docker run --ulimit memlock=-1 --cap-add IPC_LOCK …`; else a line `* - memlock unlimited` in "
        "/etc/security/limits.conf and a new login."
    )
    return warning(check_id, f"{what}; there are RDMA devices ({devices}).", means, fix)


def judge_core_size(limits: LimitFacts) -> Check:
    """Core dumps of the CPU side; the lever for GPU core dumps does not depend on it (core(5))."""
    if limits.core_bytes == 0:
        means = "A process that crashes in native code leaves no core file."
        return note("core-size", "Core dumps are off (`ulimit -c` is 0).", means, "ulimit -c unlimited")
    return ok("core-size", f"A core dump may have {_bytes(limits.core_bytes)} (`ulimit -c`).")


def judge_processes(limits: LimitFacts) -> Check:
    """How many processes and threads may still be started."""
    if limits.task_room is None:
        return ok("processes", "Processes and threads are not limited.")
    what = f"{max(0, limits.task_room):,} more processes and threads may be started ({limits.task_limit})."
    if limits.task_room >= TASKS_WANTED:
        return ok("processes", what)
    fix = (
        "Raise it: `docker run --pids-limit -1 …` in a container, `ulimit -u unlimited` in a shell, TasksMax= in a "
        "unit of systemd."
    )
    if limits.task_room < TASKS_NEEDED:
        return problem("processes", what, "vLLM does not start: `can't start new thread`.", fix)
    return warning("processes", what, "Eight workers, or many compilers at a time, may find too few.", fix)


def judge_session_disk(disk: DiskFacts) -> Check:
    """Where the log and the recording go: vLLM dies without a word when it cannot write its log."""
    fix = "Free some space, or choose a folder on another local disk: `export XDG_STATE_HOME=/FOLDER`"
    means = "A run cannot be launched, or its log ends in the middle."
    if disk.session is None:
        return problem("session-disk", str(disk.session_error), means, fix)
    return _room("session-disk", disk.session, SESSION_BYTES, problem, means, fix)


def judge_hub_disk(disk: DiskFacts) -> Check:
    """Where the hub client puts models."""
    if disk.hub is None:
        return ok("hub-disk", "Models of the hub are kept nowhere here.")
    fix = "Free some space (`hf cache prune`), or choose another disk: `export HF_HOME=/FOLDER`"
    return _room("hub-disk", disk.hub, HUB_BYTES, warning, "A model that is not there yet may not fit.", fix)


def judge_temp_disk(disk: DiskFacts) -> Check:
    """Where vLLM makes its sockets, and torch keeps what it compiles."""
    fix = "Free some space, or choose another folder: `export TMPDIR=/FOLDER`"
    return _room("temp-disk", disk.temp, TEMP_BYTES, warning, "Compiling may fail, or the start.", fix)


def _room(check_id: str, place: Place, wanted_bytes: int, worse: Callable[..., Check], means: str, fix: str) -> Check:
    what = f"{size(place.free_bytes)} are free in {place.path}"
    if not place.is_writable:
        return worse(check_id, f"{what}, which this user may not write.", means, fix)
    if place.free_bytes < wanted_bytes:
        return worse(check_id, f"{what}.", means, fix)
    return ok(check_id, f"{what}.")


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else f"{value:,}"


def _bytes(value: int | None) -> str:
    return "any amount" if value is None else size(value)
