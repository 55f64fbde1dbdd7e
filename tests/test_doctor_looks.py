"""`vllm-tui doctor`: real looks at this host. No look leaves it: the hub is a local server, or is not to be asked."""

import mmap
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from tests.conftest import Spawn, WaitFor
from tests.doctor_host import quieten, write_program
from tests.real_vllm import RealVllm
from vllm_probes.doctor import examine
from vllm_probes.doctor.looks import disk, hub, interfaces, leftovers, limits, logout, master, shm, target, tracing
from vllm_probes.sensors import tree


@pytest.fixture(autouse=True)
def _quiet(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quieten(monkeypatch)


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[str]]]:
    """A web server on the loopback: its URL, and what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with answering(204) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", f"{url}/mirror")
        assert hub.look().status == 204
        assert asked == ["/mirror"]
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid/")
        found = hub.look()
        assert (found.status, found.proxies) == (204, ["HTTP_PROXY"])
        assert asked[1:] == ["http://hub.invalid/"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, "refused"),
        ({"HF_ENDPOINT": "http://me:secret@127.0.0.1:1"}, "refused"),
        ({"HF_ENDPOINT": "nonsense"}, "protocol"),
        ({"HF_ENDPOINT": "http://[x"}, ""),
        ({"HF_ENDPOINT": "http://127.0.0.1:1", "HTTP_PROXY": "nonsense://x", "NO_PROXY": ""}, ""),
        ({"HF_ENDPOINT": "http://127.0.0.1:1", "ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": ""}, ""),
        ({"HF_ENDPOINT": "https://127.0.0.1:1", "SSL_CERT_FILE": "/not/there"}, ""),
    ],
)
def test_hub_that_cannot_be_asked(environ: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = hub.look()
    assert found.status is None
    assert found.error
    assert said in found.error
    assert "secret" not in found.url + found.error


def test_an_offline_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert hub.look().offline == "HF_HUB_OFFLINE=1"
        assert not asked


@pytest.mark.parametrize(
    ("environ", "setting"),
    [
        ({}, None),
        ({"HF_HUB_OFFLINE": "no"}, None),
        ({"HF_HUB_OFFLINE": "yes"}, "HF_HUB_OFFLINE=yes"),
        ({"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "1"}, "TRANSFORMERS_OFFLINE=1"),
        ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, None),
        ({"HF_HUB_OFFLINE": "0", "VLLM_USE_MODELSCOPE": "True"}, "VLLM_USE_MODELSCOPE=True"),
        ({"VLLM_USE_MODELSCOPE": "yes"}, None),
    ],
)
def test_what_keeps_the_hub_from_being_asked(environ: dict[str, str], setting: str | None) -> None:
    assert hub.offline_setting(environ) == setting


def test_master_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert master.look().name is None
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert master.look().addresses == ["127.0.0.1"]
    monkeypatch.setenv("MASTER_ADDR", "a..b")  # no name at all, so that no name server is asked
    assert master.look().error


def test_interfaces() -> None:
    found = {one.name: one for one in interfaces.look().interfaces}
    assert "127.0.0.1" in found["lo"].addresses
    assert found["lo"].is_running


def test_stacks_are_read_or_the_reason_is_told() -> None:
    found = tracing.look()
    assert found.version
    assert found.own
    assert found.own.error is None or "ermi" in found.own.error
    waiting = [
        process
        for process in psutil.process_iter(["cmdline"])
        if tracing.WAITING_PYTHON in (process.info["cmdline"] or [])
    ]
    _, alive = psutil.wait_procs(waiting, timeout=10)
    assert not alive


def test_a_python_that_is_none_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = write_program(tmp_path / "python3.99", "#!/bin/sh\necho $$\nread x\n")
    write_program(tmp_path / "vllm", f"#!{python}\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = tracing.look()
    assert found.target
    assert found.target.python == str(python)
    assert found.target.error


@pytest.mark.parametrize(
    ("head", "python"),
    [
        (b"#!/v/bin/python3.12\nimport sys\n", "/v/bin/python3.12"),
        (b"#!/usr/bin/python3 -s\n", "/usr/bin/python3"),
        (b"#! /usr/bin/env python3\n", "python3"),
        (b"#!/usr/bin/env -S python3 -u\n", "python3"),
        (b"#!/bin/sh\n'''exec' \"/a b/bin/python\" \"$0\" \"$@\"\n' '''\n", "/a b/bin/python"),
        (b"#!/bin/sh\n'''exec' /long/bin/python3 \"$0\" \"$@\"\n", "/long/bin/python3"),
        (b"#!/bin/sh\nexec docker run vllm\n", None),
        (b"#!/bin/bash\n", None),
        (b"#!\n", None),
        (b"\x7fELF\xff\xfe", None),
        (b"", None),
    ],
)
def test_the_python_behind_a_script(head: bytes, python: str | None) -> None:
    assert target.interpreter(head) == python


def test_target_is_asked_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "torch" / "version.py").write_text("cuda = '12.8'\n")
    write_program(tmp_path / "vllm-1.2.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: vllm\nVersion: 1.2\n")
    write_program(tmp_path / "vllm", f"#!{sys.executable}\nraise SystemExit('run')\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = target.look()
    assert (found.python, found.vllm, found.error) == (".".join(map(str, sys.version_info[:3])), "1.2", None)
    assert found.torch_source == "cuda = '12.8'\n"


@pytest.mark.parametrize(
    ("first_line", "said"),
    [("#!/not/there/python", "No such file"), (f"#!{sys.executable}", None), ("#!/bin/sh", None)],
)
def test_target_without_a_working_python(
    first_line: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(tmp_path / "vllm", f"{first_line}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = target.look()
    assert found.script == str(tmp_path / "vllm")
    assert said is None or said in str(found.error)
    assert (found.interpreter is None) == (first_line == "#!/bin/sh")
    monkeypatch.setenv("PATH", "")
    assert target.look().script is None


@pytest.mark.vllm
def test_real_vllm_is_seen_and_can_be_read(real_vllm: RealVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{real_vllm.vllm.parent}:{os.environ['PATH']}")
    checks = {check.id: check for check in examine()}
    assert checks["vllm"].what.startswith("vLLM 0.32.0+cpu with torch 2.13.0")
    assert checks["cuda"].what.endswith("is built without CUDA.")
    assert checks["py-spy"].what.endswith(f"reads {real_vllm.python}, vLLM's Python.")


def test_shm_leftovers_are_what_nobody_has_mapped() -> None:
    path = Path(f"/dev/shm/psm_test_{os.getpid()}")
    try:
        with path.open("w+b") as file:
            file.truncate(4096)
            os.utime(path, (0, 0))
            with mmap.mmap(file.fileno(), 4096):
                assert str(path) not in shm.look().leftovers
        os.utime(path, (0, 0))
        assert str(path) in shm.look().leftovers
        path.touch()
        assert str(path) not in shm.look().leftovers
    finally:
        path.unlink()
    assert shm.look().total_bytes == os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize


def test_cgroup_rooms(tmp_path: Path) -> None:
    for name, most, current in (("a/b", "max", "5"), ("a", "100", "40")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "pids.max").write_text(f"{most}\n")
        (tmp_path / name / "pids.current").write_text(f"{current}\n")
    folders = [tmp_path / "a" / "b", tmp_path / "a", tmp_path]
    assert limits.cgroup_rooms(folders) == [(60, str(tmp_path / "a" / "pids.max"))]


def test_limits_of_this_process() -> None:
    found = limits.look()
    assert found.files_soft is not None
    assert found.task_room is None or found.task_limit


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "yet"))
    found = disk.look()
    assert found.session
    assert found.session.path.startswith(str(tmp_path))
    assert found.hub
    assert found.hub.path == str(tmp_path / "not" / "yet" / "hub")
    assert found.hub.is_writable
    assert found.temp.free_bytes > 0


def test_where_models_are_kept_is_not_always_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "models")
    assert str(disk.look().hub and disk.look().hub.path) == str(Path("models").absolute())
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    assert disk.look().hub is None


def test_an_engine_without_its_server_is_an_orphan(spawned: Spawn, wait_for: WaitFor) -> None:
    below_python = spawned(["bash", "-c", "exec -a 'VLLM::Worker_TP0' sleep 100"])
    below_a_shell = spawned(["bash", "-c", "(exec -a 'VLLM::EngineCore' sleep 100) & wait"])
    [engine] = wait_for(lambda: tree.descendants(below_a_shell.pid))
    wait_for(lambda: (tree.title(engine), tree.title(below_python.pid)) == ("EngineCore", "Worker_TP0"))
    found = {one.pid: one for one in leftovers.look().strangers}
    assert found[engine].is_orphan
    assert not found[below_python.pid].is_orphan
    assert found[engine].user == leftovers.look().user
    assert found[engine].age_s < 100


LOGIND = "usr/lib/systemd/logind.conf"


@pytest.mark.parametrize(
    ("files", "kills", "removes"),
    [
        ({}, None, True),
        ({LOGIND: "[Login]\n#KillUserProcesses=no\n#RemoveIPC=yes\n"}, False, True),
        ({LOGIND: "#KillUserProcesses=yes\n"}, True, True),
        ({LOGIND: "KillUserProcesses=yes\n", "etc/systemd/logind.conf": "RemoveIPC=no\n"}, None, False),
        (
            {LOGIND: "#KillUserProcesses=no\n", "etc/systemd/logind.conf.d/9.conf": "KillUserProcesses = on\n"},
            True,
            True,
        ),
        (
            {
                "run/systemd/logind.conf.d/5.conf": "KillUserProcesses=no\n",
                "usr/lib/systemd/logind.conf.d/5.conf": "KillUserProcesses=yes\n",
                "etc/systemd/logind.conf.d/4.conf": "KillUserProcesses=yes\nRemoveIPC=0\n",
            },
            False,
            False,
        ),
    ],
)
def test_logind_settings(files: dict[str, str], kills: bool | None, removes: bool, tmp_path: Path) -> None:
    for name, text in files.items():
        write_program(tmp_path / name, text)
    found = logout.look(tmp_path)
    assert logout.kills(logout.logind_settings(tmp_path), "somebody") is kills
    assert found.removes_ipc is removes
    assert not found.has_logind
    assert not found.lingers


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        ({}, True),
        ({"KillExcludeUsers": "root me"}, False),
        ({"KillOnlyUsers": "you"}, False),
        ({"KillOnlyUsers": "you me", "KillExcludeUsers": ""}, True),
    ],
)
def test_whom_a_logout_kills(settings: dict[str, str], kills: bool) -> None:
    assert logout.kills({"KillUserProcesses": "yes", **settings}, "me") is kills


def test_a_user_who_lingers(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    write_program(tmp_path / "var/lib/systemd/linger" / psutil.Process().username(), "")
    found = logout.look(tmp_path)
    assert found.has_logind
    assert found.lingers
