"""Incomplete files of a hub's cache, as real files."""

import os
import threading
from pathlib import Path

import pytest

from tests.conftest import WaitFor
from vllm_probes.sensors import hub as hub_module
from vllm_probes.sensors.hub import ENTRY_LIMIT, HubSensor, incomplete_bytes

MIB = 1 << 20


def blobs(hub: Path, model: str = "models--org--m") -> Path:
    folder = hub / model / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_nothing_is_being_downloaded(tmp_path: Path) -> None:
    assert incomplete_bytes(tmp_path, "org/m") is None
    (blobs(tmp_path) / "etag").write_bytes(b"complete")
    assert incomplete_bytes(tmp_path, "org/m") is None
    assert incomplete_bytes(tmp_path / "models--org--m" / "blobs" / "etag", "org/m") is None


def test_both_kinds_of_incomplete_files_of_this_model_count(tmp_path: Path) -> None:
    (blobs(tmp_path) / "etag1.incomplete").write_bytes(bytes(MIB))
    (blobs(tmp_path) / "etag2.1a2b3c4d.incomplete").write_bytes(bytes(2 * MIB))
    (blobs(tmp_path) / "etag3").write_bytes(bytes(4 * MIB))
    (blobs(tmp_path, "models--org--other") / "etag4.incomplete").write_bytes(bytes(8 * MIB))
    (blobs(tmp_path, "blobs") / "etag5.incomplete").write_bytes(bytes(16 * MIB))
    assert incomplete_bytes(tmp_path, "org/m") == 3 * MIB
    assert incomplete_bytes(tmp_path, None) is None


def test_an_empty_file_is_a_download_that_has_just_begun(tmp_path: Path) -> None:
    (blobs(tmp_path) / "etag.incomplete").touch()
    assert incomplete_bytes(tmp_path, "org/m") == 0


def test_of_a_file_written_from_its_end_only_what_is_there_counts(tmp_path: Path) -> None:
    with (blobs(tmp_path) / "etag.incomplete").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"x" * MIB)
    assert MIB <= (incomplete_bytes(tmp_path, "org/m") or 0) < 2 * MIB


def test_where_no_blocks_are_counted_the_size_does(tmp_path: Path) -> None:
    path = blobs(tmp_path) / "etag.incomplete"
    path.touch()
    os.truncate(path, 5 * MIB)
    assert incomplete_bytes(tmp_path, "org/m") == 5 * MIB


def test_room_ahead_of_the_end_does_not_count(tmp_path: Path) -> None:
    with (blobs(tmp_path) / "etag.incomplete").open("wb") as file:
        file.write(b"x" * MIB)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, 8 * MIB)
        os.truncate(file.fileno(), MIB + 1)
        assert incomplete_bytes(tmp_path, "org/m") == MIB + 1


def test_a_folder_of_any_size_takes_bounded_work(tmp_path: Path) -> None:
    for number in range(ENTRY_LIMIT + 50):
        (blobs(tmp_path) / f"{number}.incomplete").write_bytes(b"x")
    assert incomplete_bytes(tmp_path, "org/m") == ENTRY_LIMIT


def test_a_sample_tells_what_the_look_before_found(tmp_path: Path, wait_for: WaitFor) -> None:
    (blobs(tmp_path) / "etag.incomplete").write_bytes(bytes(MIB))
    (blobs(tmp_path, "models--org--other") / "etag.incomplete").write_bytes(bytes(2 * MIB))
    sensor = HubSensor()
    assert sensor.sample(tmp_path, "org/m") is None
    first = wait_for(lambda: sensor.sample(tmp_path, "org/m"))
    second = wait_for(lambda: sensor.sample(tmp_path, "org/m"))
    assert first.bytes == second.bytes == MIB
    assert first.mono < second.mono
    found = {wait_for(lambda: sensor.sample(tmp_path, "org/other")).bytes for _ in range(2)}
    assert found == {2 * MIB}


def test_a_file_system_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: WaitFor
) -> None:
    """A dead NFS server cannot be had here: its place is taken by a look that waits."""
    answers, looks = threading.Event(), []

    def look(hub: Path, model_id: str | None) -> int:
        looks.append(hub)
        answers.wait()
        return 5

    monkeypatch.setattr(hub_module, "incomplete_bytes", look)
    sensor = HubSensor()
    assert [sensor.sample(tmp_path, "org/m") for _ in range(3)] == [None, None, None]
    wait_for(lambda: looks)
    assert sensor.sample(tmp_path, "org/m") is None
    assert looks == [tmp_path]
    answers.set()
    assert wait_for(lambda: sensor.sample(tmp_path, "org/m")).bytes == 5
