"""Where the weights of a server's model lie, from its command line and environment."""

import re
from collections.abc import Callable, Mapping, Sequence
from posixpath import join
from string import Template

import msgspec

from vllm_probes.judges.commandline import options, server_arguments, server_words

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_PATH_STARTS = ("/", "./", "../", "~")
_SEVERAL_VALUES = frozenset(
    (
        "--allowed-media-domains",
        "--api-key",
        "--collect-detailed-traces",
        "--cpu-offload-params",
        "--cudagraph-capture-sizes",
        "--ignore-patterns",
        "--kv-cache-dtype-skip-layers",
        "--logits-processors",
        "--lora-modules",
        "--lora-target-modules",
        "--numa-bind-cpus",
        "--numa-bind-nodes",
        "--offload-params",
        "--served-model-name",
        "--sleep-preserve-parameter-names",
    )
)
"""Options of `vllm serve --help=all` (0.32) that take every word up to the next option."""


class ModelLocation(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its command line names it; `path` and `hub` may be relative to the working directory of the server."""

    model: str
    """As typed: a path, a hub id, or the URI of an object store, of which nothing else is known."""
    path: str | None = None
    """The folder or file of its weights: as typed, or the folder of a hub id, which a download makes."""
    model_id: str | None = None
    """`ORG/NAME` of a hub; None for a path."""
    hub: str | None = None
    """The cache folder of the Hugging Face hub; None for a path, for ModelScope, and where HOME is not known."""


def model_location(
    argv: Sequence[str], env: Mapping[str, str], exists: Callable[[str], bool] = lambda path: False
) -> ModelLocation | None:
    """Where a server started like this takes its model from; wrappers and `bash -c CODE` are looked through.

    vLLM takes what exists for a path, so `exists` is asked about a name that can be both, relative to the server's
    working directory. None where the command line does not tell: it starts no vLLM server, or the model stands in a
    config file, is vLLM's default, or comes right behind an option that may take it for its value.
    """
    words = server_words(argv, env)
    if words[1:2] == ["launch"]:  # its components load no weights
        return None
    arguments = server_arguments(words) or []
    given = options(arguments)
    model = given.get("--model") or _positional(arguments)
    if not model or "$" in model:  # what only the shell can work out
        return None
    if model.startswith(_PATH_STARTS) or exists(model):
        return ModelLocation(model=model, path=_expand_home(model, env))
    model_id = model.partition(":")[0]  # REPOSITORY:QUANTISATION names one file of a GGUF repository
    if "://" in model or not _HUB_ID.fullmatch(model_id):
        return ModelLocation(model=model)
    hub = hub_cache(env, given.get("--download-dir"))
    path = None if hub is None else join(hub, folder_name(model_id))
    return ModelLocation(model=model, path=path, model_id=model_id, hub=hub)


def folder_name(model_id: str) -> str:
    """The folder of a model in the hub's cache (`repo_folder_name` of huggingface_hub, the same in 0.30 and 2.4)."""
    return "--".join(("models", *model_id.split("/")))


def _positional(arguments: Sequence[str]) -> str | None:
    """The first word that is no option and that no option before it takes for its value."""
    may_take = 0
    for word in arguments:
        if word.startswith("-"):
            option, has_value, _ = word.replace("_", "-").partition("=")
            may_take = 0 if has_value else len(arguments) if option in _SEVERAL_VALUES else 1
        elif may_take:
            may_take -= 1
        else:
            return word
    return None


def hub_cache(env: Mapping[str, str], download_dir: str | None = None) -> str | None:
    """The cache folder of the Hugging Face hub; None with ModelScope, and where HOME is not known.

    As huggingface_hub works it out (constants.py, the same in 0.30 and 2.4): set but empty counts as set.
    """
    if env.get("VLLM_USE_MODELSCOPE", "").strip().lower() in ("1", "true"):  # envs.py of 0.32
        return None
    if download_dir:
        return _expand_home(download_dir, env)
    home = _expand(env.get("HF_HOME", join(env.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")), env)
    default = None if home is None else join(home, "hub")
    cache = env.get("HF_HUB_CACHE", env.get("HUGGINGFACE_HUB_CACHE", default))
    return None if cache is None else _expand(cache, env)


def _expand(path: str, env: Mapping[str, str]) -> str | None:
    expanded = _expand_home(path, env)
    return None if expanded is None else Template(expanded).safe_substitute(env)


def _expand_home(path: str, env: Mapping[str, str]) -> str | None:
    """None for the home of somebody else, and where HOME is not set."""
    first, slash, rest = path.partition("/")
    if not first.startswith("~"):
        return path
    return env["HOME"] + slash + rest if first == "~" and "HOME" in env else None
