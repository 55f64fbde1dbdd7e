"""Numbers of the system calls in which a thread can wait, and what a wait in one of them is.

Numbers are of the kernel's arch/x86/entry/syscalls/syscall_64.tbl and of include/uapi/asm-generic/unistd.h (aarch64);
names of functions and places in the kernel (wchan) change, numbers never do.
"""

from typing import Literal

from vllm_probes.rows import ThreadStack

Wait = Literal["socket", "file", "open", "poll", "sleep", "child", "lock", "file_lock", "yield", "driver"]
"""`socket`: it can only be one. `file`: on whatever its first argument stands for. `poll`: on several at once, which
the first argument does not tell. `sleep`: for time or a signal. `driver`: ioctl."""

NO_DESCRIPTOR = "nothing"
"""`ThreadStack.descriptor` of a poll or select on no descriptor at all: how Python before 3.11 sleeps."""
_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        **{"accept": 43, "accept4": 288, "clock_nanosleep": 230, "connect": 42, "creat": 85, "epoll_pwait": 281},
        **{"epoll_pwait2": 441, "epoll_wait": 232, "fcntl": 72, "fdatasync": 75, "flock": 73, "fsync": 74},
        **{"futex": 202, "futex_wait": 455, "futex_waitv": 449, "getdents64": 217, "ioctl": 16, "nanosleep": 35},
        **{"open": 2, "openat": 257, "openat2": 437, "pause": 34, "poll": 7, "ppoll": 271, "pread64": 17},
        **{"preadv": 295, "preadv2": 327, "pselect6": 270, "pwrite64": 18, "pwritev": 296, "read": 0, "readv": 19},
        **{"recvfrom": 45, "recvmmsg": 299, "recvmsg": 47, "rt_sigsuspend": 130, "rt_sigtimedwait": 128},
        **{"sched_yield": 24, "select": 23, "semop": 65, "semtimedop": 220, "sendfile": 40, "sendmmsg": 307},
        **{"sendmsg": 46, "sendto": 44, "splice": 275, "wait4": 61, "waitid": 247, "write": 1, "writev": 20},
    },
    "aarch64": {
        **{"accept": 202, "accept4": 242, "clock_nanosleep": 115, "connect": 203, "epoll_pwait": 22},
        **{"epoll_pwait2": 441, "fcntl": 25, "fdatasync": 83, "flock": 32, "fsync": 82, "futex": 98},
        **{"futex_wait": 455, "futex_waitv": 449, "getdents64": 61, "ioctl": 29, "nanosleep": 101, "openat": 56},
        **{"openat2": 437, "ppoll": 73, "pread64": 67, "preadv": 69, "preadv2": 286, "pselect6": 72, "pwrite64": 68},
        **{"pwritev": 70, "read": 63, "readv": 65, "recvfrom": 207, "recvmmsg": 243, "recvmsg": 212},
        **{"rt_sigsuspend": 133, "rt_sigtimedwait": 137, "sched_yield": 124, "semop": 193, "semtimedop": 192},
        **{"sendfile": 71, "sendmmsg": 269, "sendmsg": 211, "sendto": 206, "splice": 76, "wait4": 260, "waitid": 95},
        **{"write": 64, "writev": 66},
    },
}
_NAMES: dict[Wait, str] = {
    "socket": "accept accept4 connect recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto",
    "file": "fdatasync fsync getdents64 pread64 preadv preadv2 pwrite64 pwritev read readv sendfile splice write "
    "writev",
    "open": "creat open openat openat2",
    "poll": "epoll_pwait epoll_pwait2 epoll_wait poll ppoll pselect6 select",
    "sleep": "clock_nanosleep nanosleep pause rt_sigsuspend rt_sigtimedwait",
    "child": "wait4 waitid",
    "lock": "futex futex_wait futex_waitv semop semtimedop",
    "file_lock": "fcntl flock",
    "yield": "sched_yield",
    "driver": "ioctl",
}
_WAIT_OF_NAME: dict[str, Wait] = {name: wait for wait, names in _NAMES.items() for name in names.split()}
_WAIT_OF_NUMBER: dict[str, dict[int, Wait]] = {
    machine: {number: _WAIT_OF_NAME[name] for name, number in numbers.items()} for machine, numbers in _NUMBERS.items()
}


def numbers(machine: str) -> dict[str, int]:
    """Names and numbers of the known calls of a machine, in the words of `uname -m`; empty for an unknown one."""
    return dict(_NUMBERS.get(machine, {}))


def wait_in(number: int | None, machine: str) -> Wait | None:
    """What a wait in this call is; None: not in a call, not known, or no call that is known to wait."""
    return None if number is None else _WAIT_OF_NUMBER.get(machine, {}).get(number)


def wait_of(thread: ThreadStack, machine: str) -> Wait | None:
    """What the kernel sees a thread wait in."""
    wait = wait_in(thread.syscall, machine)
    return "sleep" if wait == "poll" and thread.descriptor == NO_DESCRIPTOR else wait
