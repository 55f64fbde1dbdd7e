"""Watching a folder, by inotify and by polling."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WaitFor
from vllm_probes.sensors import files
from vllm_probes.sensors.files import FolderWatch

Reports = list[tuple[str, int]]


@pytest.fixture(params=["inotify", "polling"])
def watch(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderWatch]:
    monkeypatch.setattr(files, "POLL_S", 0.05)
    if request.param == "polling":

        def refuse() -> None:
            raise OSError(24, "inotify instance limit reached")

        monkeypatch.setattr(files, "InotifyObserver", refuse)
    watch = FolderWatch(tmp_path)
    yield watch
    watch.stop()


@pytest.fixture
def reports(watch: FolderWatch, tmp_path: Path) -> Reports:
    """What was reported: file name and size."""
    (tmp_path / "before").write_bytes(b"12")
    seen: Reports = []
    watch.start(lambda path, size: seen.append((path.name, size)))
    return seen


def test_files_are_reported_once_and_when_they_are_complete(
    reports: Reports, tmp_path: Path, wait_for: WaitFor
) -> None:
    wait_for(lambda: reports == [("before", 2)])
    with (tmp_path / "dump").open("wb") as dump:
        dump.write(b"123")
    wait_for(lambda: ("dump", 3) in reports)
    (tmp_path / "last").write_bytes(b"1")
    wait_for(lambda: ("last", 1) in reports)
    assert reports == [("before", 2), ("dump", 3), ("last", 1)]


def test_a_file_that_grows_later_is_reported_again(reports: Reports, tmp_path: Path, wait_for: WaitFor) -> None:
    wait_for(lambda: reports)
    with (tmp_path / "before").open("ab") as file:
        file.write(b"345")
    wait_for(lambda: reports == [("before", 2), ("before", 5)])


def test_a_renamed_file_is_one(reports: Reports, tmp_path: Path, wait_for: WaitFor) -> None:
    wait_for(lambda: reports)
    (tmp_path / "before").rename(tmp_path / "after")
    wait_for(lambda: ("after", 2) in reports)


def test_pipes_and_folders_are_none(reports: Reports, tmp_path: Path, wait_for: WaitFor) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("before")
    (tmp_path / "file").touch()
    wait_for(lambda: ("file", 0) in reports)
    assert {name for name, _ in reports} == {"before", "file"}


def test_another_start_tells_somebody_else(
    watch: FolderWatch, reports: Reports, tmp_path: Path, wait_for: WaitFor
) -> None:
    wait_for(lambda: reports)
    others: Reports = []
    watch.start(lambda path, size: others.append((path.name, size)))
    (tmp_path / "dump").touch()
    wait_for(lambda: others)
    watch.stop()
    (tmp_path / "late").touch()
    watch.start(lambda path, size: others.append((path.name, size)))
    wait_for(lambda: others[1:])
    assert (reports, others) == ([("before", 2)], [("dump", 0), ("late", 0)])


def test_a_folder_that_is_not_there_yet(tmp_path: Path, wait_for: WaitFor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "POLL_S", 0.05)
    seen: list[Path] = []
    watch = FolderWatch(tmp_path / "later")
    watch.start(lambda path, size: seen.append(path))
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "dump").touch()
    wait_for(lambda: seen == [tmp_path / "later" / "dump"])
    watch.stop()
    watch.stop()
