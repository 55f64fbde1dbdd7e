"""Headless: what a vLLM run does, recorded, judged and steered. Never imports a user interface."""

__version__ = "0.1.0"
