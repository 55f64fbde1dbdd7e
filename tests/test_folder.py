"""Session folders: private, local, found by name, damaged ones said so."""

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from vllm_probes.keeper import folder as folders
from vllm_probes.keeper.folder import FolderError, SessionFolder
from vllm_probes.launch.attempt import read_exit, start_attempt
from vllm_probes.launch.spec import LaunchSpec
from vllm_probes.sensors import tree

SPEC = LaunchSpec(argv=["sleep", "1"], env={"A_TOKEN": "secret"}, cwd="/")


def create(name: str | None = None) -> SessionFolder:
    return folders.create(folders.Launch(spec=SPEC), command=["sleep", "1"], name=name)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "vllm-tui"


def test_a_session_is_private_and_keeps_the_environment_out_of_the_public_file() -> None:
    folder = create("mine")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert (folder.path / "launch.json").stat().st_mode & 0o777 == 0o600
    assert b"secret" not in (folder.path / "meta.json").read_bytes()
    assert folder.launch().spec == SPEC
    assert folder.meta().command == ["sleep", "1"]
    assert folder.on_this_boot()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "x" * 61, "a b", "ü/"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(FolderError, match="is no name"):
        create(name)


def test_a_name_that_is_taken_is_refused() -> None:
    create("one")
    with pytest.raises(FolderError, match="already"):
        create("one")


def test_two_sessions_of_the_same_second_have_two_folders() -> None:
    assert create().path != create().path


def test_found_by_name_by_beginning_and_by_folder() -> None:
    folder = create("llama-70b")
    create("qwen")
    for word in ("llama-70b", "llama", str(folder.path)):
        assert folders.find(word).path == folder.path


def test_what_cannot_be_found_is_said() -> None:
    with pytest.raises(FolderError, match="No session is running"):
        folders.find(None)
    with pytest.raises(FolderError, match="no session called 'nothing'"):
        folders.find("nothing")
    create("twin-1")
    create("twin-2")
    with pytest.raises(FolderError, match="twin-1"):
        folders.find("twin")


def test_the_lock_is_held_once() -> None:
    folder = create()
    assert not folder.has_keeper()
    descriptor = folder.lock()
    assert descriptor is not None
    assert folder.has_keeper()
    assert folder.lock() is None
    os.close(descriptor)
    assert not folder.has_keeper()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"name": 3}'])
def test_a_damaged_folder_is_named(content: bytes | None) -> None:
    folder = create("broken")
    meta = folder.path / "meta.json"
    meta.unlink()
    if content is not None:
        meta.write_bytes(content)
    with pytest.raises(FolderError, match=r"broken.*meta\.json"):
        folder.meta()


def test_a_state_folder_that_cannot_be_made_falls_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    assert folders.state_folder() == Path(f"/var/tmp/vllm-tui-{os.getuid()}")


def test_too_little_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(FolderError, match="free"):
        create()


def test_old_ended_sessions_are_forgotten_and_others_kept(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    monkeypatch.setattr(folders, "KEPT_SESSIONS", 2)
    old, foreign = create("old"), create("foreign")
    text = (foreign.path / "meta.json").read_text()
    (foreign.path / "meta.json").write_text(text.replace(folders.boot_id(), "another-boot"))
    for age, folder in enumerate((foreign, old)):
        os.utime(folder.path, (age, age))
    create("new-1")
    create("new-2")
    assert {folder.path.name for folder in folders.sessions()} == {"foreign", "new-1", "new-2"}


def test_what_belongs_to_others_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    create("mine")
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert list(folders.sessions()) == []


def test_a_session_of_another_host_or_boot_is_never_the_one_that_is_meant(state: Path) -> None:
    meta = create("other").path / "meta.json"
    meta.write_text(meta.read_text().replace(folders.boot_id(), "another-boot"))
    (meta.parent / "attempt-1.log").touch()
    with pytest.raises(FolderError, match="No session is running"):
        folders.find(None)


def test_looking_for_a_keeper_leaves_nothing_behind() -> None:
    folder = create("looked-at")
    assert not folder.has_keeper()
    assert not (folder.path / "keeper.lock").exists()


def test_a_tree_that_outlives_its_command_keeps_its_session(
    spawned: Spawn, wait_for: WaitFor, tmp_path: Path, state: Path
) -> None:
    folder = create("outlived")
    spec = LaunchSpec(argv=["sh", "-c", "sleep 100 & exit 1"], env=dict(os.environ), cwd="/")
    shim = start_attempt(spec, folder.attempt(1))
    wait_for(lambda: read_exit(folder.attempt(1)))
    assert not folder.is_over()
    assert folders.find(None).path == folder.path
    (tmp_path / "link").symlink_to(state)
    assert not SessionFolder(tmp_path / "link" / "sessions" / "outlived").is_over()
    for pid in tree.descendants(shim.pid):
        os.kill(pid, signal.SIGKILL)
    shim.wait(10)
    assert folder.is_over()


def test_arguments_that_are_no_utf8_come_back_as_they_were() -> None:
    word = os.fsdecode(b"a\xffb")
    spec = LaunchSpec(argv=["echo", word], env={"FOO": word}, cwd=f"/{word}")
    folder = folders.create(folders.Launch(spec=spec), command=["echo", word], name="bytes")
    assert folder.launch().spec == spec
    assert (folder.meta().command, folder.meta().cwd) == (["echo", "a?b"], "/a?b")
