"""Which model a command line names, and where its weights lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.judges.model_location import ModelLocation, folder_name, model_location

HOME = {"HOME": "/home/me"}
HUB = "/home/me/.cache/huggingface/hub"


def in_hub(model_id: str, hub: str = HUB) -> ModelLocation:
    return ModelLocation(model=model_id, path=f"{hub}/{folder_name(model_id)}", model_id=model_id, hub=hub)


@pytest.mark.parametrize(
    ("argv", "model"),
    [
        (["vllm", "serve", "org/m"], "org/m"),
        (["vllm", "serve", "org/m", "--port", "1", "--served-model-name", "a", "b"], "org/m"),
        (["vllm", "serve", "--port", "1", "org/m"], "org/m"),
        (["vllm", "serve", "--port=1", "org/m"], "org/m"),
        (["vllm", "serve", "-tp", "8", "org/m", "--enforce-eager"], "org/m"),
        (["vllm", "serve", "--model", "org/m", "--port", "1"], "org/m"),
        (["vllm", "serve", "--port", "1", "--model=org/m"], "org/m"),
        (["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/m"], "org/m"),
        (["srun", "-N1", "env", "A=1", "/v/bin/vllm", "serve", "org/m"], "org/m"),
        (["bash", "-c", "cd /x && vllm serve $MODEL --port 1 > log; echo m2"], "org/m"),
        (["bash", "-c", "vllm serve --port 1; echo org/m"], None),
        (["bash", "-c", "vllm serve /models/$MISSING"], None),
        (["vllm", "serve"], None),
        (["vllm", "serve", ""], None),
        (["vllm", "serve", "--config", "c.yaml"], None),
        (["vllm", "serve", "org/m", "--config", "c.yaml"], "org/m"),
        (["vllm", "serve", "--enforce-eager", "org/m"], None),  # nobody here knows that this option takes no value
        (["vllm", "serve", "--served-model-name", "a", "b"], None),
        (["vllm", "serve", "--served_model_name", "a", "b", "--port", "1", "org/m"], "org/m"),
        (["vllm", "launch", "render", "org/m"], None),
        (["vllm", "bench", "serve", "--model", "org/m"], None),
        (["python", "-m", "vllm.entrypoints.openai.api_server"], None),
        (["python", "train.py", "--model", "org/m"], None),
        ([], None),
    ],
)
def test_the_model_of_a_command_line(argv: list[str], model: str | None) -> None:
    location = model_location(argv, HOME | {"MODEL": "org/m"})
    assert (location.model if location else None) == model


@pytest.mark.parametrize(
    ("model", "location"),
    [
        ("org/m", in_hub("org/m")),
        ("gpt2", in_hub("gpt2")),
        ("/models/m", ModelLocation(model="/models/m", path="/models/m")),
        ("./m", ModelLocation(model="./m", path="./m")),
        ("../org/m", ModelLocation(model="../org/m", path="../org/m")),
        ("~/m", ModelLocation(model="~/m", path="/home/me/m")),
        ("~you/m", ModelLocation(model="~you/m")),
        ("org/m:Q4_K_M", ModelLocation(model="org/m:Q4_K_M", path=f"{HUB}/models--org--m", model_id="org/m", hub=HUB)),
        ("s3://bucket/m", ModelLocation(model="s3://bucket/m")),
        ("deep/er/m", ModelLocation(model="deep/er/m")),
        ("here/m", ModelLocation(model="here/m", path="here/m")),
    ],
)
def test_path_or_hub_id(model: str, location: ModelLocation) -> None:
    assert model_location(["vllm", "serve", model], HOME, exists=lambda path: path == "here/m") == location


@pytest.mark.parametrize(
    ("env", "hub"),
    [
        ({}, HUB),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/c"}, "/hf/hub"),
        ({"HF_HOME": "~/hf"}, "/home/me/hf/hub"),
        ({"HF_HOME": "${SCRATCH}/hf", "SCRATCH": "/scratch"}, "/scratch/hf/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf"}, "/old"),
        ({"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old"}, "/new"),
        ({"HF_HUB_CACHE": "$HOME/c"}, "/home/me/c"),
        ({"HF_HUB_CACHE": "c"}, "c"),
        ({"XDG_CACHE_HOME": ""}, "huggingface/hub"),
        ({"VLLM_USE_MODELSCOPE": "0"}, HUB),
    ],
)
def test_the_hub_of_an_environment(env: dict[str, str], hub: str) -> None:
    assert model_location(["vllm", "serve", "org/m"], HOME | env) == in_hub("org/m", hub)


@pytest.mark.parametrize(
    ("env", "options"),
    [
        (HOME | {"VLLM_USE_MODELSCOPE": "True"}, []),
        (HOME | {"VLLM_USE_MODELSCOPE": "1", "HF_HUB_CACHE": "/new"}, ["--download-dir", "/d"]),
        ({}, []),
        (HOME, ["--download-dir", "~you/d"]),
        (HOME | {"HF_HOME": "~you/hf"}, []),
    ],
)
def test_no_hub(env: dict[str, str], options: list[str]) -> None:
    location = model_location(["vllm", "serve", "org/m", *options], env)
    assert location == ModelLocation(model="org/m", model_id="org/m")


@pytest.mark.parametrize("option", [["--download-dir", "~/d"], ["--download-dir=~/d"], ["--download_dir", "~/d"]])
def test_a_download_dir_is_the_hub(option: list[str]) -> None:
    env = HOME | {"HF_HUB_CACHE": "/new"}
    assert model_location(["vllm", "serve", "org/m", *option], env) == in_hub("org/m", "/home/me/d")


@given(st.lists(st.text(max_size=20)), st.dictionaries(st.sampled_from(["HOME", "HF_HOME", "HF_HUB_CACHE"]), st.text()))
def test_never_raises(words: list[str], env: dict[str, str]) -> None:
    model_location(["vllm", "serve", *words], env)
    model_location(["bash", "-c", f"vllm serve {' '.join(words)}"], env)
