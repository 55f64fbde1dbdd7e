"""Fixtures for tests of GPUs: `pytest_plugins = ["tests.fake_nvml.fixtures"]` in the module that wants them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Spawn, WaitFor
from tests.fake_nvml.driver import FakeDriver, build
from tests.fake_nvml.watched import Watched, quick


@pytest.fixture(scope="session")
def nvml_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("nvml")
    return {"new": build(folder / "new"), "old": build(folder / "old", old=True)}


@pytest.fixture
def fake_driver(nvml_libraries: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The fake driver, for every program that the test starts from here on."""
    fake = FakeDriver(nvml_libraries["new"], tmp_path)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture
def watch_gpus(spawned: Spawn, wait_for: WaitFor) -> Iterator[Callable[..., Watched]]:
    """`watch_gpus(command)`: a sensor that has been started; `spawned` ends whatever it leaves."""
    all_watched: list[Watched] = []

    def start(*command: str) -> Watched:
        all_watched.append(Watched(command or quick(), wait_for))
        return all_watched[-1]

    yield start
    for watched in all_watched:
        watched.sensor.close()
