"""`python -m vllm_tui` is `vllm-tui`."""

from vllm_tui.cli import main

main()
