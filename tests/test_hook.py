"""The start-up hook inside real Pythons: what it does there, what it leaves alone, and that it is never in the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_probes.launch.levers import HOOK

AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount something")
LOOK = """
import json, os, sys
def caught(kind):
    masks = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return bool(int(masks[kind], 16) >> 11 & 1)
def stacks():
    links = {int(name): "/proc/self/fd/" + name for name in os.listdir("/proc/self/fd")}
    opened = {fd: os.readlink(link) for fd, link in links.items() if os.path.lexists(link)}
    return {fd: os.fstat(fd).st_ino for fd, path in opened.items() if "/vllm-tui-stacks-" in path}
def look():
    return {"caught": caught("SigCgt"), "ignored": caught("SigIgn"), "stacks": stacks(), "pid": os.getpid()}
"""
TELL = LOOK + "print(json.dumps(look()))"


def other_pythons() -> list[str]:
    """One interpreter of each other version that is installed here, beside the one that runs the tests."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found = [shutil.which(f"python3.{minor}") for minor in range(8, 20)]
    found += sorted(str(path) for path in pyenv.glob("3.*/bin/python3"))
    versions = {one: version(one) for one in found if one}
    kept = {number: one for one, number in versions.items() if number >= (3, 8) and number != sys.version_info[:2]}
    return [kept[number] for number in sorted(kept)]


def version(python: str) -> tuple[int, ...]:
    code = "import sys; print(*sys.version_info[:2])"
    printed = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False).stdout
    return tuple(map(int, printed.split()))


PYTHONS = [sys.executable, *other_pythons()]
every_python = pytest.mark.parametrize("python", PYTHONS, ids=lambda path: ".".join(map(str, version(path))))


def environment(*folders: Path | str, hook: bool = True, **variables: str) -> dict[str, str]:
    path = ":".join([*([str(HOOK)] if hook else []), *map(str, folders)])
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return own | {"PYTHONPATH": path} | variables


def run(argv: list[str], env: dict[str, str] | None = None, **options: Any) -> "subprocess.CompletedProcess[str]":
    options = {"capture_output": True, "text": True, "timeout": 60, "check": False} | options
    return subprocess.run(argv, env=env or environment(), **options)


def told(argv: list[str], env: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    """What a program finds that looks at itself. It prints nothing else."""
    done = run(argv, env, **options)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def is_hooked(found: dict[str, Any]) -> bool:
    return bool(found["caught"] and len(found["stacks"]) == 1)


def is_untouched(found: dict[str, Any]) -> bool:
    return not found["caught"] and not found["stacks"]


# --- where it is, and where it is not -------------------------------------------------------------------------------


@every_python
def test_every_python_of_the_run_is_hooked(python: str) -> None:
    assert is_hooked(told([python, "-c", TELL]))
    assert is_untouched(told([python, "-c", TELL], environment(hook=False)))


@pytest.mark.parametrize("option", ["-I", "-E", "-S"])
def test_a_python_that_wants_nothing_from_outside_gets_nothing(option: str) -> None:
    assert is_untouched(told([sys.executable, option, "-c", TELL]))


@every_python
def test_it_loads_hardly_a_module(python: str) -> None:
    """What makes a start slow is imports: there may be hundreds of short processes."""
    code = "import sys; print(*sys.modules)"
    with_hook, without = (set(run([python, "-c", code], environment(hook=on)).stdout.split()) for on in (True, False))
    assert with_hook - without == {"sitecustomize", "faulthandler"}


def test_its_folder_hides_no_module_of_a_program() -> None:
    assert {path.name for path in HOOK.iterdir()} - {"__pycache__"} == {"sitecustomize.py"}


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@every_python
def test_children_have_a_file_of_their_own(python: str, method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        LOOK + "import multiprocessing\n"
        "def child(pipe, below):\n"
        "    pipe.send(look())\n"
        "    if below: start(pipe, below - 1)\n"
        "def start(pipe, below):\n"
        f"    one = multiprocessing.get_context({method!r}).Process(target=child, args=(pipe, below))\n"
        "    one.start(); one.join()\n"
        "if __name__ == '__main__':\n"
        "    mine, theirs = multiprocessing.Pipe()\n"
        "    start(theirs, 1)\n"
        "    print(json.dumps([look(), mine.recv(), mine.recv()]))\n"
    )
    done = run([python, str(script)])
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert all(map(is_hooked, found))
    assert len({inode for one in found for inode in one["stacks"].values()}) == 3
    assert len({descriptor for one in found for descriptor in one["stacks"]}) == 1


def test_the_python_of_a_virtual_environment_is_hooked_and_keeps_its_own_sitecustomize(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False)
    [packages] = tmp_path.glob("lib/python3*/site-packages")
    (packages / "sitecustomize.py").write_text("import sys; sys.own = __file__")
    code = LOOK + "print(json.dumps({**look(), 'own': sys.own}))"
    found = told([str(tmp_path / "bin" / "python"), "-c", code])
    assert is_hooked(found)
    assert found["own"] == str(packages / "sitecustomize.py")


# --- other sitecustomizes -------------------------------------------------------------------------------------------


@every_python
def test_the_one_that_it_hides_is_loaded_once_in_its_place(python: str, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sitecustomize.py").write_text(
            f"import sys; sys.loaded = [*getattr(sys, 'loaded', []), {folder!r}]"
        )
    code = "import sys, sitecustomize\nprint(sys.loaded, sitecustomize.__file__, *sys.path[1:4], sep='\\n')"
    done = run([python, "-c", code], environment(tmp_path / "first", tmp_path / "second"))
    own = tmp_path / "first"
    expected = ["['first']", f"{own / 'sitecustomize.py'}", f"{HOOK}", f"{own}", f"{tmp_path / 'second'}"]
    assert done.stdout.splitlines() == expected
    assert is_hooked(told([python, "-c", TELL], environment(own)))


@pytest.mark.parametrize(
    "text",
    [
        "raise ValueError('theirs')",
        "import nowhere_to_be_found",
        "raise ImportError('odd')",
        "1/0",
        "def (",
        "raise SystemExit(3)",
    ],
)
@every_python
def test_its_errors_are_shown_as_without_the_hook(python: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(text)
    code = "import sys; print('sitecustomize' in sys.modules)"
    with_hook, without = (run([python, "-c", code], environment(tmp_path, hook=on)) for on in (True, False))
    assert (with_hook.returncode, with_hook.stdout) == (without.returncode, without.stdout)
    assert "SystemExit" in text or with_hook.stderr == without.stderr
    assert without.stderr


def test_after_their_error_stacks_are_offered_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise ValueError('theirs')")
    assert is_hooked(json.loads(run([sys.executable, "-c", TELL], environment(tmp_path)).stdout))


def test_usercustomize_is_loaded_as_ever(tmp_path: Path) -> None:
    for name in ("usercustomize", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"print({name!r}, __file__)")
    python = os.path.realpath(sys.executable)  # that of a virtual environment loads no usercustomize
    with_hook, without = (run([python, "-c", ""], environment(tmp_path, hook=on)) for on in (True, False))
    assert with_hook.stdout == without.stdout
    assert "usercustomize" in without.stdout


def test_two_hooks_are_as_one(tmp_path: Path) -> None:
    """A run inside a run, by another version of this program."""
    shutil.copy(HOOK / "sitecustomize.py", tmp_path)
    assert is_hooked(told([sys.executable, "-c", TELL], environment(tmp_path)))


# --- the signal of somebody else ------------------------------------------------------------------------------------


def test_an_ignored_signal_stays_ignored() -> None:
    found = told(["sh", "-c", 'trap "" USR2; exec "$0" -c "$1"', sys.executable, TELL])
    assert found["ignored"]
    assert is_untouched(found)


def test_a_handler_that_is_there_first_stays(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal; signal.signal(signal.SIGUSR2, lambda *_: print('theirs'))"
    )
    code = LOOK + "os.kill(os.getpid(), 12); print(stacks())"
    assert run([sys.executable, "-c", code], environment(tmp_path)).stdout == "theirs\n{}\n"


@every_python
def test_a_program_may_install_a_handler_later_and_take_it_off(python: str) -> None:
    code = (
        LOOK + "import signal\n"
        "before = signal.signal(signal.SIGUSR2, lambda *_: print('mine'))\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "signal.signal(signal.SIGUSR2, before)\n"
        "print(before, caught('SigCgt'))\n"
    )
    with_hook, without = (run([python, "-c", code], environment(hook=on)) for on in (True, False))
    assert with_hook.stdout == without.stdout
    assert with_hook.stdout.startswith("mine\n")


def test_a_second_interpreter_in_the_process_changes_nothing() -> None:
    code = LOOK + "import _xxsubinterpreters as i; i.run_string(i.create(), 'import sitecustomize'); " + TELL
    assert is_hooked(told([sys.executable, "-c", code]))


# --- descriptors ----------------------------------------------------------------------------------------------------


def test_closed_standard_streams_stay_closed(tmp_path: Path) -> None:
    result = tmp_path / "result"
    code = LOOK + (
        "def is_open(fd):\n"
        "    try: return bool(os.fstat(fd))\n"
        "    except OSError: return False\n"
        "found = {**look(), 'open': [fd for fd in (0, 1, 2) if is_open(fd)]}\n"
        "os.closerange(0, 3)\n"
        "open(sys.argv[1], 'w').write(json.dumps(found))\n"
    )
    run(["sh", "-c", 'exec "$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, code, str(result)])
    found = json.loads(result.read_text())
    assert is_hooked(found)
    assert found["open"] == []


def test_a_full_pipe_holds_nobody_up(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    code = f"{LOOK}import pathlib; pathlib.Path(sys.argv[1]).write_text(json.dumps(look()))"
    run([sys.executable, "-c", code, str(tmp_path / "result")], capture_output=False, stdout=writer, stderr=writer)
    os.close(reader)
    os.close(writer)
    assert is_hooked(json.loads((tmp_path / "result").read_text()))


def test_descriptors_that_are_handed_down_are_not_taken(tmp_path: Path) -> None:
    """Bash, make and service managers hand down descriptors with fixed numbers."""
    with (tmp_path / "theirs").open("w+") as file:
        os.dup2(file.fileno(), 500)
        found = told([sys.executable, "-c", "import os; os.write(500, b'theirs')\n" + TELL], pass_fds=[500])
        os.close(500)
        assert (tmp_path / "theirs").read_text() == "theirs"
    assert list(found["stacks"]) == ["501"]


def test_a_descriptor_that_the_program_took_for_itself_stays_its_own_in_a_fork(tmp_path: Path) -> None:
    code = (
        LOOK + "[number] = stacks()\n"
        "file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "os.dup2(file, number)\n"
        "child = os.fork()\n"
        "os.write(number, b'child ' if child == 0 else b'')\n"
        "if child: os.waitpid(child, 0); print(json.dumps(look()))\n"
    )
    assert told([sys.executable, "-c", code, str(tmp_path / "theirs")])["stacks"] == {}
    assert (tmp_path / "theirs").read_text() == "child "


def test_no_program_that_it_starts_inherits_the_descriptor() -> None:
    code = "import subprocess, sys; subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False)"
    listed = run([sys.executable, "-c", code]).stdout
    assert "/proc/" in listed
    assert "vllm-tui" not in listed


def test_few_descriptors() -> None:
    found = told(["sh", "-c", 'ulimit -n 64; exec "$0" -c "$1"', sys.executable, TELL])
    assert is_untouched(found)


def test_short_processes_leave_nothing_behind() -> None:
    code = "import os; os.write(1, b'%d\\n' % os.getpid()); os._exit(0)"
    loop = 'for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do "$0" -c "$1" & done; wait'
    pids = run(["sh", "-c", loop, sys.executable, code]).stdout.split()
    assert len(pids) == 20
    assert not [path for path in Path("/dev/shm").glob("vllm-tui-stacks-*") if path.name.rpartition("-")[2] in pids]


# --- lines ----------------------------------------------------------------------------------------------------------


@every_python
def test_lines_of_several_processes_stay_whole(python: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfor n in range(400):\n"
        "    print(sys.argv[1] * 30, sys.argv[1] * 30)\n"
        "    sys.stderr.write(sys.argv[1] * 30 + ' '); sys.stderr.write(sys.argv[1] * 30 + '\\n')\n"
    )
    log = tmp_path / "log"
    with log.open("ab") as file:
        loop = 'for letter in a b c d; do "$0" -c "$1" $letter & done; wait'
        run(["sh", "-c", loop, python, code], capture_output=False, stdout=file, stderr=file)
    lines = log.read_text().splitlines()
    assert len(lines) == 4 * 800
    assert set(lines) == {f"{letter * 30} {letter * 30}" for letter in "abcd"}


# --- hosts that are odd ---------------------------------------------------------------------------------------------


@pytest.fixture
def in_own_mounts() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`in_own_mounts(commands, code)`: Python code where mounts of its own hide those of the host."""

    def start(commands: str, code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        shell = f'set -e; {commands}; exec "$0" -c "$1"'
        return run(["unshare", "-m", "sh", "-c", shell, sys.executable, code], environment(**variables))

    if run(["unshare", "-m", "true"]).returncode:
        pytest.skip("no mount namespaces here")
    return start


InOwnMounts = Callable[..., "subprocess.CompletedProcess[str]"]


@AS_ROOT
def test_where_no_file_can_be_made_programs_run_all_the_same(in_own_mounts: InOwnMounts) -> None:
    done = in_own_mounts("mount -t tmpfs -o ro none /dev/shm", TELL)
    assert (done.returncode, done.stderr) == (0, "")
    assert is_untouched(json.loads(done.stdout))


@pytest.fixture
def prctl_log(tmp_path: Path) -> tuple[Path, Path]:
    """A library that writes down calls of prctl, and where to: there is no Yama here that could be asked."""
    source, library, log = tmp_path / "prctl.c", tmp_path / "prctl.so", tmp_path / "log"
    source.write_text(
        "#include <fcntl.h>\n#include <stdio.h>\n#include <unistd.h>\n"
        "int prctl(int option, long argument) {\n"
        "  if (option != 0x59616d61) return 0;\n"
        f'  int log = open("{log}", O_WRONLY | O_CREAT | O_APPEND, 0600);\n'
        '  dprintf(log, "%d %x %d\\n", getpid(), option, (int)argument); close(log); return 0; }\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    log.touch()
    return library, log


FORKS = "import os\nchild = os.fork()\nif child: os.waitpid(child, 0); print(os.getpid(), child)"


@AS_ROOT
@pytest.mark.parametrize("scope", ["0", "1", "2"])
def test_with_yama_any_process_may_trace(scope: str, prctl_log: tuple[Path, Path], in_own_mounts: InOwnMounts) -> None:
    library, log = prctl_log
    yama = "mount -t tmpfs none /proc/sys/kernel; mkdir /proc/sys/kernel/yama; F=/proc/sys/kernel/yama/ptrace_scope"
    done = in_own_mounts(f"{yama}; echo {scope} > $F", FORKS, LD_PRELOAD=str(library))
    assert done.stderr == ""
    calls = [f"{pid} 59616d61 -1" for pid in done.stdout.split()]
    assert log.read_text().splitlines() == (calls if scope == "1" else [])


def test_signal_number() -> None:
    """The hook has it as a number: `import signal` would cost every process a millisecond."""
    assert signal.SIGUSR2 == 12
