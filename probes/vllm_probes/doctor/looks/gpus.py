"""The NVIDIA driver. A call of NVML may never return, and then not even SIGKILL may end its caller."""

from pathlib import Path

import pynvml

from vllm_probes.doctor.facts import GpuFacts, GpuStatus
from vllm_probes.rows import GpuCard
from vllm_probes.sensors.nvml import host_has_gpu
from vllm_probes.sensors.nvml_calls import CARD, DRIVER_VERSION, Target

_STATUS: dict[int, GpuStatus] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no_library",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "not_loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "mismatch",
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
}


def look() -> GpuFacts:
    """What NVML says, and what the kernel does."""
    module, has_gpu = module_version(Path("/proc/driver/nvidia/version")), host_has_gpu()
    try:
        pynvml.nvmlInit()
        driver, cuda = Target().ask(DRIVER_VERSION), _cuda()
        looked = [_card(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        status = _STATUS.get(error.value, "failed")
        return GpuFacts(status=status, error=str(error), module=module, has_gpu=has_gpu)
    return GpuFacts(
        status="ok",
        driver=driver,
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        lacks_libcuda=cuda is None,
        cards=[card for card, _ in looked],
        errors=[error for _, error in looked if error],
        module=module,
        has_gpu=has_gpu,
    )


def module_version(path: Path) -> str | None:
    """Of the kernel module that is loaded, from `NVRM version: … Kernel Module  570.86.15  …` in its file of /proc."""
    try:
        words = path.read_text(errors="replace").partition("\n")[0].split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _cuda() -> int | None:
    """The newest CUDA for the libcuda that this process would load, a forward-compatibility package's included.

    None: there is no libcuda. Drivers without `…_v2` tell what they came with.
    """
    try:
        return int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return None
        return int(pynvml.nvmlSystemGetCudaDriverVersion())


def _card(index: int) -> tuple[GpuCard, str | None]:
    """A GPU, and why it does not answer; what it refuses to tell while it tells others is no matter."""
    try:
        target = Target(pynvml.nvmlDeviceGetHandleByIndex(index))
        fields = target.ask_all(CARD)
        if not fields and target.trouble is not None:
            raise target.trouble
    except pynvml.NVMLError as error:
        return GpuCard(index=index), f"GPU {index}: {error}"
    return GpuCard(index=index, **fields), None
