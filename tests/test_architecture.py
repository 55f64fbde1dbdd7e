"""What the import contracts cannot see: what a fresh process really loads, and how large things have become."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("probes/vllm_probes/**/*.py"), *ROOT.glob("tui/vllm_tui/**/*.py")]


def loaded_by(code: str) -> set[str]:
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in printed.stdout.split()}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("vllm_probes.keeper.keeper", {"textual", "vllm_tui"}),  # httpx loads click and rich by itself
        ("vllm_probes.demo", {"textual", "rich", "click", "vllm_tui", "asyncio"}),
        ("vllm_probes.keeper.attempts", {"asyncio", "psutil", "httpx", "textual", "watchdog"}),
        ("vllm_tui.cli", {"asyncio", "textual", "psutil", "httpx", "msgspec"}),
        ("vllm_tui.headless", {"textual", "rich"}),
        ("vllm_tui.app", {"psutil", "httpx", "watchdog", "pynvml", "prometheus_client"}),
    ],
)
def test_nothing_is_loaded_that_is_not_needed(module: str, unwanted: set[str]) -> None:
    assert not loaded_by(f"import {module}") & unwanted


def test_modules_stay_readable() -> None:
    long = {str(path.relative_to(ROOT)): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 350}
    assert long == {}


def test_functions_stay_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": length
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 40
    }
    assert long == {}


def test_everything_is_caught_in_one_place_only() -> None:
    """What stands between one sensor's fault and the run; nothing else may swallow what it does not know."""
    broad = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
    ]
    assert broad == ["probes/vllm_probes/keeper/keeper.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_named_like_one_of_the_standard_library(path: Path) -> None:
    assert path.stem in ("__init__", "__main__") or path.stem not in sys.stdlib_module_names
