"""Headless: what a vLLM run does, recorded, judged and steered. Never imports a user interface."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vllm-tui")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"
