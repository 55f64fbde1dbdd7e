"""The driver, what it sees, and whether it fits the torch of the vLLM on PATH."""

import re
from collections.abc import Mapping

from vllm_probes.doctor.check import Check, note, ok, plural, problem, unknown, warning
from vllm_probes.doctor.facts import GpuFacts, TargetFacts
from vllm_probes.gpus import visible_indices

_NO_GPU_RUNS = "vLLM finds no GPU: whatever it starts on GPUs fails."
_IN_CONTAINER = "in a container start it with `docker run --gpus all …`"


def judge_driver(gpus: GpuFacts) -> Check:
    """Driver and NVML (return codes of NVML: nvml.h). A host without driver and GPU runs vLLM on its CPU."""
    if gpus.status == "ok":
        return _working_driver(gpus)
    if gpus.status == "no_library":
        return _missing_library(gpus)
    what = f"NVML cannot be used: {gpus.error}."
    if gpus.status == "not_loaded":
        fix = f"Load it with `sudo modprobe nvidia` (`sudo dmesg | grep -i nvrm` says why not), or {_IN_CONTAINER}."
        return problem("driver", what, f"The kernel module is not loaded. {_NO_GPU_RUNS}", fix)
    if gpus.status == "mismatch":
        loaded = f" ({gpus.module} is loaded)" if gpus.module else ""
        means = f"The driver was updated while its old kernel module{loaded} stayed in use. {_NO_GPU_RUNS}"
        return problem("driver", what, means, "Restart this host (a container: start it anew): `sudo reboot`")
    if gpus.status == "no_permission":
        fix = f"Look at who may use them with `ls -l /dev/nvidia*`, or {_IN_CONTAINER}."
        return problem("driver", what, f"This user may not use the devices. {_NO_GPU_RUNS}", fix)
    return problem("driver", what, _NO_GPU_RUNS, "Read what the driver logged: `sudo dmesg | grep -iE 'nvrm|xid'`")


def judge_visible_devices(gpus: GpuFacts, environ: Mapping[str, str]) -> Check:
    """CUDA_VISIBLE_DEVICES against the GPUs there are."""
    check_id, count = "visible-devices", len(gpus.cards)
    value = environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return ok(check_id, f"It is not set{f': CUDA sees {count} of {count} GPUs' if count else ''}.")
    if gpus.status != "ok":
        means = "There is no driver to compare it with."
        return note(check_id, f"It is {value!r}.", means, "unset CUDA_VISIBLE_DEVICES")
    if any(entry.strip().startswith("MIG-") for entry in value.split(",")):
        means = "It names MIG instances, which are not looked at."
        return note(check_id, f"It is {value!r}.", means, "Compare it with `nvidia-smi -L`.")
    return _hidden(value, gpus) or _order(value, gpus, environ) or _all_visible(value, gpus)


def _hidden(value: str, gpus: GpuFacts) -> Check | None:
    """An entry that names no GPU hides itself and all that follow (CUDA programming guide, "CUDA environment
    variables"); a repeated one hides everything (torch/cuda/__init__.py, `_parse_visible_devices`)."""
    entries = [entry.strip() for entry in value.split(",")]
    if repeated := next((entry for entry in entries if entry and entries.count(entry) > 1), None):
        what = f"It is {value!r}: {repeated!r} stands there more than once."
        return problem("visible-devices", what, "CUDA sees no GPU then.", _without_repetition(entries))
    seen = visible_indices(value, {card.index: card for card in gpus.cards})
    if len(seen) == len(entries):
        return None
    names_none = "it hides every GPU" if not value.strip() else f"{entries[len(seen)]!r} names no GPU"
    what = f"It is {value!r}: {names_none}; CUDA sees {len(seen)} of {plural(len(gpus.cards), 'GPU')}."
    means = f"CUDA stops at the first entry that it does not know.{'' if seen else f' {_NO_GPU_RUNS}'}"
    fix = "Name those that `nvidia-smi -L` lists, or: `unset CUDA_VISIBLE_DEVICES`"
    return problem("visible-devices", what, means, fix)


def _order(value: str, gpus: GpuFacts, environ: Mapping[str, str]) -> Check | None:
    """Without CUDA_DEVICE_ORDER, CUDA counts the fastest GPU first, NVML and nvidia-smi by their place on the bus."""
    names = {card.name for card in gpus.cards}
    has_numbers = any(entry.strip().isdecimal() for entry in value.split(","))
    if len(names) < 2 or not has_numbers or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return None
    what = f"It is {value!r} on a host with GPUs of {len(names)} kinds."
    means = "CUDA's numbers need not be those of nvidia-smi."
    return warning("visible-devices", what, means, "export CUDA_DEVICE_ORDER=PCI_BUS_ID")


def _all_visible(value: str, gpus: GpuFacts) -> Check:
    seen, count = len(value.split(",")), len(gpus.cards)
    return ok("visible-devices", f"It is {value!r}: CUDA sees {seen} of {plural(count, 'GPU')}.")


def judge_cuda(target: TargetFacts, gpus: GpuFacts | None) -> Check:
    """The CUDA of torch against the newest that the driver runs."""
    cuda, hip = built_for(target.torch_source, "cuda"), built_for(target.torch_source, "hip")
    if not target.torch_source:
        what, means = "No torch was found behind the vllm on PATH.", "The driver is compared with nothing."
        return note("cuda", what, means, "Install vLLM there, or activate it.")
    if cuda is None:
        return _without_cuda(target, hip, gpus)
    built = f"torch {target.torch} is built for CUDA {cuda}"
    if gpus is not None and gpus.status != "ok":
        means = "vLLM stops with `Failed to infer device type`, unless it is run where there is one."
        what = f"{built}, and no NVIDIA driver can be used here."
        return problem("cuda", what, means, "See what is said of the NVIDIA driver.")
    if gpus is not None and gpus.lacks_libcuda:
        fix = (
            f"Install libcuda.so.1 of the driver; {_IN_CONTAINER} and `-e NVIDIA_DRIVER_CAPABILITIES=compute,utility`."
        )
        return problem("cuda", f"{built}, and libcuda.so.1 cannot be loaded.", "CUDA does not start.", fix)
    if gpus is None or gpus.cuda is None:
        return unknown("cuda", f"{built}; the driver does not say what it runs.", "They may not fit.", "nvidia-smi")
    return _compared(cuda, gpus.cuda, f"{built}, the driver {gpus.driver} runs CUDA {gpus.cuda}.")


def _compared(built_for_cuda: str, driver_cuda: str, what: str) -> Check:
    """The same major version is enough, a newer one is not (CUDA compatibility, "Minor version compatibility")."""
    built, runs = _version(built_for_cuda), _version(driver_cuda)
    if built[0] > runs[0]:
        fix = (
            "Update the driver, or install a vLLM for this one: `uv pip install vllm --torch-backend=auto`. "
            "Datacenter GPUs also take NVIDIA's package cuda-compat with `export VLLM_ENABLE_CUDA_COMPATIBILITY=1`."
        )
        return problem("cuda", what, "CUDA does not start: the driver is too old for this torch.", fix)
    if built > runs:
        means = "It works within one major version, but kernels that are compiled on the spot for the newer one fail."
        return note("cuda", what, means, "Update the driver if such a kernel fails.")
    return ok("cuda", what)


def built_for(torch_source: str, name: str) -> str | None:
    """A version in the text of torch/version.py: `cuda: Optional[str] = '12.8'`, or `cuda = '12.1'` (torch 1 and 2)."""
    found = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", torch_source, re.MULTILINE)
    return found[1] if found else None


def _working_driver(gpus: GpuFacts) -> Check:
    what = (
        f"Driver {gpus.driver}, for CUDA up to {gpus.cuda or '?'}, with {plural(len(gpus.cards), 'GPU')}{_names(gpus)}"
    )
    if not gpus.cards:
        return problem("driver", f"{what}.", _NO_GPU_RUNS, f"Look at `nvidia-smi -L`; {_IN_CONTAINER}.")
    if gpus.errors:
        means = "Such a GPU is of no use until it is reset; a run that is given it fails or hangs."
        fix = "Read why with `sudo dmesg | grep -i xid`, then restart this host."
        return problem("driver", f"{what}; {'; '.join(gpus.errors)}.", means, fix)
    return ok("driver", f"{what}.")


def _missing_library(gpus: GpuFacts) -> Check:
    if gpus.module:
        what = f"The kernel module {gpus.module} is loaded, but libnvidia-ml.so.1 cannot be loaded."
        fix = f"Install the driver's libraries and run `sudo ldconfig`; {_IN_CONTAINER}."
        return problem("driver", what, _NO_GPU_RUNS, fix)
    if gpus.has_gpu:
        what = "There is no NVIDIA driver, though an NVIDIA GPU can be seen on the PCI bus."
        return problem("driver", what, _NO_GPU_RUNS, f"Install the NVIDIA driver; {_IN_CONTAINER}.")
    means = "A vLLM that is built for the CPU or for other GPUs runs; one for CUDA does not."
    return note(
        "driver", "There is no NVIDIA driver and no NVIDIA GPU.", means, "Run GPU models on a host that has one."
    )


def _without_cuda(target: TargetFacts, hip: str | None, gpus: GpuFacts | None) -> Check:
    what = f"torch {target.torch} is built {f'for ROCm {hip}' if hip else 'without CUDA'}."
    if gpus is not None and gpus.cards:
        means = f"This vLLM does not use the {plural(len(gpus.cards), 'NVIDIA GPU')} of this host."
        return warning("cuda", what, means, "uv pip install vllm --torch-backend=auto")
    return ok("cuda", what)


def _without_repetition(entries: list[str]) -> str:
    if not all(re.fullmatch(r"[\w-]+", entry) for entry in entries):
        return "unset CUDA_VISIBLE_DEVICES"
    return f"export CUDA_VISIBLE_DEVICES={','.join(dict.fromkeys(entries))}"


def _names(gpus: GpuFacts) -> str:
    names = sorted({card.name for card in gpus.cards if card.name})
    return f" ({', '.join(names)})" if names else ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
