"""The table of frames: every entry's own samples, stacks of real vLLM, and files of a user."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.real_vllm import RealVllm
from tests.stack_notation import thread
from vllm_probes.judges.doing import doing, place
from vllm_probes.judges.frames import FrameError, load_frames
from vllm_probes.rows import ThreadStack

TABLE = load_frames()
SAMPLES = [(entry.id, sample) for entry in TABLE.entries for sample in entry.samples]
NOT_SAMPLES = [(entry.id, sample) for entry in TABLE.entries for sample in entry.not_samples]
REAL = [
    kept for file in sorted(Path(__file__).with_name("stacks").glob("*.json")) for kept in json.loads(file.read_text())
]


@pytest.mark.parametrize(("entry", "sample"), SAMPLES)
def test_samples(entry: str, sample: str) -> None:
    assert entry in TABLE.classify(thread(sample)).rules


@pytest.mark.parametrize(("entry", "sample"), NOT_SAMPLES)
def test_not_samples(entry: str, sample: str) -> None:
    assert entry not in TABLE.classify(thread(sample)).rules


def test_every_entry_explains_itself_and_tells_what_it_is_not() -> None:
    assert [entry.id for entry in TABLE.entries if not (entry.why and entry.versions and entry.not_samples)] == []


# --- real vLLM --------------------------------------------------------------------------------------------------------


def real_thread(kept: dict[str, Any]) -> ThreadStack:
    return thread(kept["stack"], state=kept["state"], syscall=kept["syscall"], descriptor=kept.get("descriptor"))


@pytest.mark.parametrize("kept", REAL, ids=[f"{kept['process']} {kept['thread']}: {kept['what']}" for kept in REAL])
def test_stacks_of_real_vllm(kept: dict[str, Any]) -> None:
    """vLLM with two ranks on the CPU, and scripts that use torch.distributed; what is expected was checked by eye."""
    stack = real_thread(kept)
    found = TABLE.classify(stack)
    assert (found.class_, found.operation) == (kept["class"], kept.get("operation"))
    assert (doing(stack, found, moved=False), place(stack)) == (kept["doing"], kept["place"])


GONE = {
    *("process_input_socket", "process_output_socket", "join_first", "_wait_for_engine_startup", "_schedule"),
    *("determine_num_available_blocks", "_warm_up_model"),
}
"""Functions of versions before 0.32, in files that 0.32 still has."""
NOT_INSTALLED = ("torch/ops/", "vllm/executor/", "vllm/engine/multiprocessing/", "ray/", "modelscope/")


@pytest.mark.vllm
def test_every_function_is_one_of_vllm_or_of_what_it_uses(real_vllm: RealVllm) -> None:
    """Names of libraries that the CPU build does without cannot be checked."""
    packages = real_vllm.folder / "venv" / "lib" / "python3.11" / "site-packages"
    lost = {}
    for entry in TABLE.entries:
        files = [entry.file] if isinstance(entry.file, str) else entry.file
        sources = [source for file in files for source in sources_of(file, packages)]
        known = {name for source in sources for name in functions_of(source)}
        if sources and (missing := set(entry.functions) - known - GONE):
            lost[entry.id] = missing
        if not sources and not all(file.startswith(NOT_INSTALLED) for file in files):
            assert "not at hand" in entry.versions, entry.id
    assert lost == {}


def sources_of(file: str, packages: Path) -> list[Path]:
    found = [folder / file for folder in (packages, Path(ast.__file__).parent) if (folder / file).exists()]
    return sorted(found[0].rglob("*.py")) if found and file.endswith("/") else found


def functions_of(source: Path) -> set[str]:
    tree = ast.walk(ast.parse(source.read_text("utf-8")))
    return {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


# --- files of a user --------------------------------------------------------------------------------------------------

GOOD = """
[[frame]]
id = "mine"
class = "network"
file = "mine/store.py"
functions = ["fetch"]
why = "It asks our store."
versions = "1"
samples = ["fetch (mine/store.py:3)"]
not_samples = ["fetch (other.py:3)"]
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return file


def test_entries_of_a_user_come_first(tmp_path: Path) -> None:
    text = GOOD.replace("mine/store.py", "huggingface_hub/file_download.py").replace("fetch", "http_get")
    found = load_frames(write(tmp_path, text)).classify(thread("http_get (huggingface_hub/file_download.py:3)"))
    assert (found.rules, found.why) == (("mine",), "It asks our store.")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("[[frame]]", "[[frame]"), "TOML|Expected"),
        (("[[frame]]", "[[frames]]"), "only \\[\\[frame\\]\\]"),
        (("why = ", "because = "), "because|why"),
        (('"network"', '"net"'), "class"),
        (('["fetch"]', '"fetch"'), "functions"),
        (('samples = ["fetch (mine/store.py:3)"]', "samples = []"), "`samples` is empty"),
        (('"mine"', '"triton"'), "two frames have the id 'triton'"),
    ],
)
def test_a_malformed_file_names_itself_and_the_entry(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    with pytest.raises(FrameError, match=complaint) as raised:
        load_frames(write(tmp_path, text))
    assert ".toml" in str(raised.value)
