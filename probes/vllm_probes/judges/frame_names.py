"""What the names and files of a stack say by themselves."""

import sys

from vllm_probes.rows import Frame

_LIBRARY_PACKAGES = frozenset(
    (
        *("asyncio", "collections", "concurrent", "compression", "ctypes", "curses", "dbm", "distutils", "email"),
        *("encodings", "ensurepip", "html", "http", "importlib", "json", "logging", "multiprocessing", "pathlib", "re"),
        *("sqlite3", "string", "sysconfig", "tkinter", "tomllib", "unittest", "urllib", "venv", "wsgiref", "xml"),
        *("xmlrpc", "zipfile", "zoneinfo"),
    )
)
"""Folders of Python 3.9-3.14. Users have folders called `code`, `profile` and `test`, too."""
OPERATORS = "torch/ops/"
"""Where the frames of operators are said to be: no such files exist."""
_PACKAGES = ("/site-packages/", "/dist-packages/")


def last_name(function: str) -> str:
    """The function's name without class and module: Python 3.11 and later give stacks with qualified names."""
    return function.rpartition(".")[2]


def is_standard_library(file: str) -> bool:
    """Whether a file of a stack is part of Python itself."""
    if file.startswith("<frozen "):
        return True
    first, is_folder, _ = inside_package(file).partition("/")
    return first in _LIBRARY_PACKAGES if is_folder else first.removesuffix(".py") in sys.stdlib_module_names


def called_operator(source_line: str) -> Frame | None:
    """The operator of torch that a line of a program calls, as a frame to put below `__call__ (torch/_ops.py)`.

    A compiled model calls operators by a line like `torch.ops._C.shm_allreduce.default(0, buf0)`; its stack says only
    that it is in some operator. None: the line calls none.
    """
    parts = source_line.partition("torch.ops.")[2].partition("(")[0].split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return None
    return Frame(function=parts[1], file=f"{OPERATORS}{parts[0]}")


def inside_package(file: str) -> str:
    """The part of a path from a package's own folder on; a path that is one already stays as it is."""
    for packages in _PACKAGES:
        if packages in file:
            return file.rpartition(packages)[2]
    library, _, rest = file.rpartition("/lib/python3.")
    return rest.partition("/")[2] if library else file
