"""A driver library that answers from a scenario, for hosts without a GPU; `nvml.c` says what a scenario can hold.

A fake, because nothing else can be had: no test host has a GPU, let alone one that gets lost. The real binding
(nvidia-ml-py) loads it as it loads NVIDIA's, by its name.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"


def build(folder: Path, *, old: bool = False) -> Path:
    """Compile the library into a folder of its own; `old`: without the functions of the newest drivers."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-DOLD_DRIVER"] if old else []
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", *options]
    subprocess.run([*command, "-o", str(folder / LIBRARY), str(SOURCE)], check=True)
    return folder


class FakeDriver:
    """The library with a scenario: what it says of the host can be changed at any time."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library, self._scenario = library, folder / "scenario"
        self.calls_path = folder / "calls"
        self.write()

    def write(self, *settings: str) -> None:
        """Replace the scenario. Without any setting there is one idle GPU."""
        draft = self._scenario.with_suffix(".draft")
        draft.write_text("".join(f"{setting}\n" for setting in settings), errors="surrogateescape")
        os.replace(draft, self._scenario)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a program needs in its environment to meet this driver."""
        return {"LD_LIBRARY_PATH": str(self._library), "FAKE_NVML_SCENARIO": str(self._scenario)}

    def calls(self, function: str, gpu: int) -> int:
        """How often the function was called on a GPU since the setting `calls` named `calls_path`."""
        lines = self.calls_path.read_text().splitlines() if self.calls_path.exists() else []
        return lines.count(f"{function} {gpu}")
