"""`vllm-tui doctor`: from facts to checks, by tables."""

import shlex
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes import doctor
from vllm_probes.doctor import facts
from vllm_probes.doctor.check import TITLES, Check, age, size
from vllm_probes.doctor.judges import gpus, host, network, target, user
from vllm_probes.rows import GpuCard

CARDS = [GpuCard(index=index, uuid=f"GPU-{index}abc", name="NVIDIA H100") for index in range(4)]
DRIVER = facts.GpuFacts(status="ok", driver="570.86", cuda="12.8", cards=CARDS)
NO_DRIVER = facts.GpuFacts(status="no_library")


def torch(cuda: str | None = None, hip: str | None = None) -> facts.TargetFacts:
    source = f"__version__ = '2.9.0'\ndebug = False\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = {hip!r}\n"
    return facts.TargetFacts(script="/v/bin/vllm", interpreter="/v/bin/python", torch="2.9.0", torch_source=source)


def told(check: Check) -> str:
    """Everything that a check says; what is not ok says what it means and what to do."""
    assert check.title == TITLES[check.id]
    assert bool(check.means) == bool(check.fix) == (check.outcome != "ok")
    return " ".join((check.what, check.means, check.fix))


def test_every_check_has_a_rule_in_the_order_of_the_titles() -> None:
    assert [rule.check_id for rule in doctor.RULES] == list(TITLES)


@pytest.mark.parametrize(
    ("found", "outcome", "said"),
    [
        ({"status": "ok", "driver": "570.86", "cuda": "12.8", "cards": CARDS}, "ok", "4 GPUs (NVIDIA H100)"),
        ({"status": "ok", "driver": "570.86"}, "problem", "--gpus all"),
        ({"status": "ok", "cards": CARDS, "errors": ["GPU 3: GPU is lost"]}, "problem", "GPU 3: GPU is lost"),
        ({"status": "no_library"}, "note", "no NVIDIA driver and no NVIDIA GPU"),
        ({"status": "no_library", "has_gpu": True}, "problem", "PCI bus"),
        ({"status": "no_library", "module": "570.86"}, "problem", "libnvidia-ml.so.1"),
        ({"status": "not_loaded", "error": "Driver Not Loaded"}, "problem", "sudo modprobe nvidia"),
        ({"status": "mismatch", "error": "Mismatch", "module": "550.1"}, "problem", "(550.1 is loaded)"),
        ({"status": "no_permission", "error": "Insufficient Permissions"}, "problem", "ls -l /dev/nvidia*"),
        ({"status": "failed", "error": "Unknown Error"}, "problem", "Unknown Error"),
    ],
)
def test_driver(found: dict[str, Any], outcome: str, said: str) -> None:
    check = gpus.judge_driver(facts.GpuFacts(**found))
    assert check.outcome == outcome
    assert said in told(check)


@pytest.mark.parametrize(
    ("cuda", "hip", "driver", "outcome", "said"),
    [
        ("12.8", None, DRIVER, "ok", "CUDA 12.8"),
        ("12.4", None, DRIVER, "ok", "CUDA 12.4"),
        ("11.8", None, DRIVER, "ok", "CUDA 11.8"),
        ("12.9", None, DRIVER, "note", "compiled on the spot"),
        ("12.10", None, DRIVER, "note", "12.10"),
        ("13.0", None, DRIVER, "problem", "--torch-backend=auto"),
        ("12.8", None, NO_DRIVER, "problem", "Failed to infer device type"),
        ("12.8", None, None, "unknown", "does not say"),
        ("12.8", None, facts.GpuFacts(status="ok", cards=CARDS), "unknown", "does not say"),
        ("12.8", None, facts.GpuFacts(status="ok", cards=CARDS, lacks_libcuda=True), "problem", "CAPABILITIES=compute"),
        (None, None, NO_DRIVER, "ok", "without CUDA"),
        (None, None, None, "ok", "without CUDA"),
        (None, None, DRIVER, "warning", "4 NVIDIA GPUs"),
        (None, "6.4", NO_DRIVER, "ok", "ROCm 6.4"),
    ],
)
def test_cuda(cuda: str | None, hip: str | None, driver: facts.GpuFacts | None, outcome: str, said: str) -> None:
    check = gpus.judge_cuda(torch(cuda, hip), driver)
    assert check.outcome == outcome
    assert said in told(check)


def test_cuda_without_torch() -> None:
    assert gpus.judge_cuda(facts.TargetFacts(), DRIVER).outcome == "note"


@pytest.mark.parametrize("line", ["cuda = '12.1'", 'cuda: Optional[str] = "12.1"', "cuda:Optional[str]='12.1'"])
def test_torch_version_of_several_ages(line: str) -> None:
    assert gpus.built_for(f"cuda_other = '9.0'\n{line}\n", "cuda") == "12.1"


@pytest.mark.parametrize(
    ("value", "outcome", "said"),
    [
        (None, "ok", "4 of 4"),
        ("0,1", "ok", "2 of 4"),
        (" 3 , 1 ", "ok", "2 of 4"),
        ("GPU-2", "ok", "1 of 4"),
        ("", "problem", "hides every GPU"),
        ("-1", "problem", "0 of 4"),
        ("NoDevFiles", "problem", "'NoDevFiles' names no GPU"),
        ("0,9,1", "problem", "'9' names no GPU; CUDA sees 1 of 4"),
        ("1,0,1", "problem", "export CUDA_VISIBLE_DEVICES=1,0"),
        ("$(rm x),$(rm x)", "problem", "unset CUDA_VISIBLE_DEVICES"),
        ("MIG-1,MIG-2", "note", "nvidia-smi -L"),
    ],
)
def test_visible_devices(value: str | None, outcome: str, said: str) -> None:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    check = gpus.judge_visible_devices(DRIVER, environ)
    assert check.outcome == outcome
    assert said in told(check)
    assert "$(" not in check.fix


@given(st.lists(st.integers(0, 7), min_size=1))
def test_visible_devices_are_ok_just_when_all_are_there_once(indices: list[int]) -> None:
    check = gpus.judge_visible_devices(DRIVER, {"CUDA_VISIBLE_DEVICES": ",".join(map(str, indices))})
    assert (check.outcome == "ok") == (len(set(indices)) == len(indices) and max(indices) < len(CARDS))


def test_visible_devices_of_a_host_without_driver_are_compared_with_nothing() -> None:
    assert gpus.judge_visible_devices(NO_DRIVER, {"CUDA_VISIBLE_DEVICES": "9"}).outcome == "note"
    assert gpus.judge_visible_devices(NO_DRIVER, {}).outcome == "ok"


@pytest.mark.parametrize(
    ("more", "value", "outcome"),
    [({}, "0", "warning"), ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "0", "ok"), ({}, "GPU-0", "ok")],
)
def test_numbers_of_gpus_that_differ_depend_on_the_order(more: dict[str, str], value: str, outcome: str) -> None:
    mixed = facts.GpuFacts(status="ok", cards=[CARDS[0], GpuCard(index=1, uuid="GPU-1", name="NVIDIA T4")])
    assert gpus.judge_visible_devices(mixed, {"CUDA_VISIBLE_DEVICES": value, **more}).outcome == outcome


MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("total", "free", "driver", "outcome", "said"),
    [
        (24 * GIB, 23 * GIB, DRIVER, "ok", "23.0 GiB of 24.0 GiB"),
        (64 * MIB, 64 * MIB, DRIVER, "problem", "--shm-size"),
        (64 * MIB, 64 * MIB, None, "problem", "--ipc=host"),
        (64 * MIB, 64 * MIB, facts.GpuFacts(status="ok", cards=CARDS[:1]), "warning", "--shm-size"),
        (512 * MIB, 512 * MIB, DRIVER, "warning", "remount"),
        (24 * GIB, 100 * MIB, DRIVER, "problem", "ls -l /dev/shm"),
        (None, None, DRIVER, "problem", "no /dev/shm"),
        (0, 0, DRIVER, "ok", "no limit"),
    ],
)
def test_shm(total: int | None, free: int | None, driver: facts.GpuFacts | None, outcome: str, said: str) -> None:
    check = host.judge_shm(facts.ShmFacts(total_bytes=total, free_bytes=free), driver)
    assert check.outcome == outcome
    assert said in told(check)


def test_shm_leftovers_are_removed_by_a_command_that_is_safe_to_paste() -> None:
    paths = ["/dev/shm/psm_1", "/dev/shm/psm_; reboot"]
    found = facts.ShmFacts(leftovers=paths, leftover_bytes=3 * MIB, sees_host=True)
    check = host.judge_shm_leftovers(found)
    assert check.outcome == "note"
    assert "2 files in /dev/shm (3 MiB)" in told(check)
    assert shlex.split(check.fix) == ["rm", "--", *paths]
    assert "container" not in check.means
    hidden = host.judge_shm_leftovers(facts.ShmFacts(leftovers=[f"/dev/shm/psm_{n}" for n in range(30)]))
    assert "--ipc=host" in hidden.means
    assert "first 20" in hidden.means
    assert len(hidden.fix.split()) == 22
    assert host.judge_shm_leftovers(facts.ShmFacts()).outcome == "ok"


def limits(**changes: Any) -> facts.LimitFacts:
    usual = {"files_soft": 1024, "files_hard": 1 << 20, "locked_bytes": None, "can_lock": False, "core_bytes": None}
    return facts.LimitFacts(**({"task_room": None} | usual | changes))


@pytest.mark.parametrize(
    ("judge", "changes", "outcome", "said"),
    [
        (host.judge_open_files, {}, "ok", "1,024"),
        (host.judge_open_files, {"files_hard": None}, "ok", "unlimited"),
        (host.judge_open_files, {"files_hard": 20000}, "warning", "--ulimit nofile=65535"),
        (host.judge_open_files, {"files_hard": 128}, "problem", "Too many open files"),
        (host.judge_locked_memory, {}, "ok", "any amount"),
        (host.judge_locked_memory, {"locked_bytes": 65536}, "ok", "64 KiB"),
        (host.judge_locked_memory, {"locked_bytes": 8 * MIB, "rdma_devices": ["mlx5_0"]}, "warning", "IPC_LOCK"),
        (host.judge_locked_memory, {"locked_bytes": 0, "rdma_devices": ["m"], "can_lock": True}, "ok", "CAP_IPC_LOCK"),
        (host.judge_core_size, {}, "ok", "any amount"),
        (host.judge_core_size, {"core_bytes": 0}, "note", "ulimit -c unlimited"),
        (host.judge_processes, {}, "ok", "not limited"),
        (host.judge_processes, {"task_room": 30000, "task_limit": "ulimit -u"}, "ok", "30,000"),
        (host.judge_processes, {"task_room": 900, "task_limit": "ulimit -u"}, "warning", "(ulimit -u)"),
        (host.judge_processes, {"task_room": -4, "task_limit": "/c/pids.max"}, "problem", "0 more"),
    ],
)
def test_limits(judge: Callable[..., Check], changes: dict[str, Any], outcome: str, said: str) -> None:
    check = judge(limits(**changes))
    assert check.outcome == outcome
    assert said in told(check)


def place(free_bytes: int, is_writable: bool = True) -> facts.Place:
    return facts.Place(path="/s", free_bytes=free_bytes, is_writable=is_writable)


@pytest.mark.parametrize(
    ("found", "outcomes"),
    [
        ({"session": place(2 * GIB), "hub": place(20 * GIB), "temp": place(2 * GIB)}, ["ok", "ok", "ok"]),
        ({"session": place(2 * GIB), "temp": place(2 * GIB)}, ["ok", "ok", "ok"]),
        ({"session": place(MIB), "hub": place(5 * GIB), "temp": place(MIB)}, ["problem", "warning", "warning"]),
        ({"session_error": "No.", "hub": place(20 * GIB, False), "temp": place(2 * GIB)}, ["problem", "warning", "ok"]),
    ],
)
def test_disks(found: dict[str, Any], outcomes: list[str]) -> None:
    disk = facts.DiskFacts(**found)
    checks = [host.judge_session_disk(disk), host.judge_hub_disk(disk), host.judge_temp_disk(disk)]
    assert [check.outcome for check in checks] == outcomes
    assert all(map(told, checks))


DENIED = "Error: Permission Denied: Try running again with elevated permissions"


@pytest.mark.parametrize(
    ("scope", "own", "theirs", "outcomes", "said"),
    [
        (None, None, None, ["ok", "ok"], "py-spy 0.4.3"),
        (1, DENIED, DENIED, ["warning", "note"], "sudo sysctl -w kernel.yama.ptrace_scope=0"),
        (1, DENIED, DENIED, ["warning", "note"], "Only a vLLM that vllm-tui starts shows its stacks"),
        (2, DENIED, DENIED, ["warning", "note"], "only while they stand still"),
        (3, DENIED, DENIED, ["warning", "note"], "restart this host"),
        (None, "Error: Operation not permitted (os error 1)", DENIED, ["warning", "note"], "--cap-add SYS_PTRACE"),
        (0, None, "Error: Unsupported version of Python: 3.19.0", ["ok", "warning"], "Python: 3.19.0"),
        (0, "Error: Odd", "Error: Odd", ["warning", "warning"], "Odd"),
    ],
)
def test_stacks(scope: int | None, own: str | None, theirs: str | None, outcomes: list[str], said: str) -> None:
    tracing = facts.TracingFacts(
        py_spy="/v/bin/py-spy",
        version="0.4.3",
        ptrace_scope=scope,
        own=facts.Attempt(python="/o/python", error=own),
        target=facts.Attempt(python="/t/python", error=theirs),
    )
    checks = [target.judge_ptrace(tracing), target.judge_py_spy(tracing)]
    assert [check.outcome for check in checks] == outcomes
    assert said in " ".join(map(told, checks))


def test_stacks_without_py_spy_and_without_vllm() -> None:
    none = facts.TracingFacts()
    assert [target.judge_ptrace(none).outcome, target.judge_py_spy(none).outcome] == ["warning", "warning"]
    alone = facts.TracingFacts(py_spy="/p", version="0.4.3", own=facts.Attempt(python="/o"))
    assert "no other to try" in target.judge_py_spy(alone).what


@pytest.mark.parametrize(
    ("found", "outcome", "said"),
    [
        ({}, "note", "no `vllm` on PATH"),
        ({"script": "/a b/vllm"}, "note", "`'/a b/vllm' --version`"),
        ({"script": "/v", "interpreter": "/gone/python", "error": "No such file"}, "problem", "/gone/python"),
        ({"script": "/v", "interpreter": "/p", "python": "3.12.1"}, "warning", "/p -m pip install vllm"),
        ({"script": "/v", "interpreter": "/p", "python": "3.12.1", "vllm": "0.32.0"}, "ok", "vLLM 0.32.0 on"),
    ],
)
def test_vllm(found: dict[str, str], outcome: str, said: str) -> None:
    check = target.judge_vllm(facts.TargetFacts(**found))
    assert check.outcome == outcome
    assert said in told(check)


def test_debug_variables_are_those_of_the_levers() -> None:
    assert user.judge_debug_variables({"HOME": "/", "NCCL_DEBUG": "VERSION"}).outcome == "ok"
    check = user.judge_debug_variables({"CUDA_LAUNCH_BLOCKING": "1", "NCCL_DEBUG": "INFO"})
    assert check.outcome == "warning"
    assert "NCCL_DEBUG=INFO" in told(check)
    assert set(check.fix.split()) == {"unset", "CUDA_LAUNCH_BLOCKING", "NCCL_DEBUG"}


def stranger(pid: int, user_name: str, age_s: float, is_orphan: bool) -> facts.Stranger:
    return facts.Stranger(pid=pid, process="EngineCore", user=user_name, age_s=age_s, is_orphan=is_orphan)


@pytest.mark.parametrize(
    ("found", "outcome", "fix"),
    [
        ([], "ok", ""),
        ([stranger(7, "me", 7300, True)], "warning", "kill 7"),
        ([stranger(7, "me", 7300, True), stranger(8, "you", 7300, True)], "warning", "sudo kill 7 8"),
        ([stranger(7, "me", 7300, True), stranger(8, "you", 7300, False)], "warning", "kill 7"),
        ([stranger(7, "me", 1, True)], "note", "vllm-tui ls"),
        ([stranger(pid, "you", 60, False) for pid in range(20)], "note", "vllm-tui ls"),
    ],
)
def test_leftovers(found: list[facts.Stranger], outcome: str, fix: str) -> None:
    check = user.judge_leftovers(facts.LeftoverFacts(user="me", strangers=found))
    assert (check.outcome, check.fix) == (outcome, fix)
    assert ("12 more" in told(check)) == (len(found) == 20)


@pytest.mark.parametrize(
    ("found", "outcome", "said"),
    [
        ({"has_logind": False}, "ok", "No systemd-logind"),
        ({"uid": 0, "unit": "session", "kills_processes": True}, "ok", "system user"),
        ({"unit": "session", "kills_processes": False}, "ok", "KillUserProcesses is off"),
        ({"unit": "session", "kills_processes": True, "lingers": True}, "warning", "systemd-run --user --scope"),
        ({"unit": "session", "kills_processes": None}, "unknown", "KillUserProcesses"),
        ({"unit": "manager"}, "warning", "loginctl enable-linger"),
        ({"unit": "manager", "lingers": True}, "ok", "lingers"),
        ({"unit": "other"}, "note", "RemoveIPC=no"),
        ({"unit": "other", "lingers": True}, "ok", "lingers"),
        ({"unit": "other", "removes_ipc": False}, "ok", "no part of a login"),
    ],
)
def test_logout(found: dict[str, Any], outcome: str, said: str) -> None:
    usual = {"has_logind": True, "uid": 1000, "user": "me"}
    check = user.judge_logout(facts.LogoutFacts(**(usual | found)))
    assert check.outcome == outcome
    assert said in told(check)


NET = facts.InterfaceFacts(
    interfaces=[
        facts.Interface(name="lo", addresses=["127.0.0.1", "::1"]),
        facts.Interface(name="eth0", addresses=["192.0.2.2", "fd00::2"]),
        facts.Interface(name="eth1", addresses=["198.51.100.7"], is_running=False),
        facts.Interface(name="docker0", addresses=["172.17.0.1"]),
        facts.Interface(name="ifb0"),
    ]
)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ("", "ok"),
        ("192.0.2.2", "ok"),
        ("FD00:0::2", "ok"),
        ("127.0.1.1", "ok"),
        ("203.0.113.1", "problem"),
        ("0.0.0.0", "problem"),
        ("eth0", "problem"),
    ],
)
def test_host_ip(value: str, outcome: str) -> None:
    check = network.judge_host_ip(NET, {"VLLM_HOST_IP": value})
    assert check.outcome == outcome
    assert outcome == "ok" or "export VLLM_HOST_IP=192.0.2.2" in told(check)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("eth", ["eth0"]),
        ("eth0:1", ["eth0"]),
        ("ib,docker", ["docker0"]),
        ("=eth", []),
        ("=eth0,docker0", ["eth0", "docker0"]),
        ("=eth1", []),
        ("^docker,lo", ["eth0"]),
        ("^=eth0", ["lo", "docker0"]),
        ("^e,d,l", []),
        ("ifb", []),
        ("ib0", []),
    ],
)
def test_nccl_interface(value: str, found: list[str]) -> None:
    assert network.nccl_matches(value, NET.interfaces) == found
    check = network.judge_nccl_interface(NET, {"NCCL_SOCKET_IFNAME": value})
    assert check.outcome == ("ok" if found else "problem")
    assert told(check)


@given(st.lists(st.sampled_from(["e", "eth", "eth0", "lo", "ib", "docker0"]), min_size=1), st.sampled_from(["", "="]))
def test_nccl_excludes_just_what_it_would_include(words: list[str], exact: str) -> None:
    names = exact + ",".join(words)
    taken, left = (set(network.nccl_matches(sign + names, NET.interfaces)) for sign in ("", "^"))
    assert taken | left == {"lo", "eth0", "docker0"}
    assert not taken & left


@pytest.mark.parametrize(
    ("value", "outcome"), [("", "ok"), ("eth0", "ok"), ("eth0,lo", "ok"), ("eth", "problem"), ("eth0,ifb0", "problem")]
)
def test_gloo_interface(value: str, outcome: str) -> None:
    check = network.judge_gloo_interface(NET, {"GLOO_SOCKET_IFNAME": value})
    assert check.outcome == outcome
    assert told(check)


@pytest.mark.parametrize(
    ("master", "outcome", "said"),
    [
        (facts.MasterFacts(), "ok", "not set"),
        (facts.MasterFacts(name="here", addresses=["fd00::9", "192.0.2.2"]), "ok", "this host"),
        (facts.MasterFacts(name="there", addresses=["203.0.113.1"]), "note", "another host"),
        (facts.MasterFacts(name="nowhere", error="Name or service not known"), "problem", "not known"),
    ],
)
def test_master_address(master: facts.MasterFacts, outcome: str, said: str) -> None:
    check = network.judge_master_address(master, NET)
    assert check.outcome == outcome
    assert said in told(check)


@pytest.mark.parametrize(
    ("found", "outcome", "said"),
    [
        ({"status": 200}, "ok", "HTTP 200"),
        ({"status": 404}, "ok", "HTTP 404"),
        ({"status": 503}, "warning", "HTTP 503"),
        ({"status": 407, "proxies": ["HTTPS_PROXY"]}, "warning", "that are set: HTTPS_PROXY"),
        ({"error": "timed out"}, "warning", "hf download"),
        ({"offline": "HF_HUB_OFFLINE=1"}, "note", "unset HF_HUB_OFFLINE"),
        ({"offline": "VLLM_USE_MODELSCOPE=1"}, "note", "come from ModelScope"),
    ],
)
def test_hub(found: dict[str, Any], outcome: str, said: str) -> None:
    check = network.judge_hub(facts.HubFacts(url="http://hub", **found))
    assert check.outcome == outcome
    assert said in told(check)


def test_sizes_and_ages() -> None:
    assert [size(n) for n in (0, 12288, MIB, GIB - 1, 7.5 * GIB)] == ["0 KiB", "12 KiB", "1 MiB", "1023 MiB", "7.5 GiB"]
    assert [age(s) for s in (-1, 59, 60, 7200, 200000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
