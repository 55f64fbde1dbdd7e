"""What the engine calls on every rank."""

from vllm_probes.demo.devices import Device
from vllm_probes.demo.options import Options
from vllm_probes.demo.startup import play, stages
from vllm_probes.demo.vllm.distributed.parallel_state import GroupCoordinator
from vllm_probes.demo.vllm.v1.worker.gpu_model_runner import GPUModelRunner

_USED_BYTES = {
    "init_device": 900 << 20,
    "load_model": 2900 << 20,
    "determine_available_memory": 71 << 30,
    "compile_or_warm_up_model": 72 << 30,
}
"""Of the simulated GPU after each stage, as the log of the start-up has it."""


class Worker:
    """One rank: its start-up is only printed, its steps are executed."""

    def __init__(
        self, options: Options, rank: int, tp_group: GroupCoordinator, device: Device, has_incident: bool
    ) -> None:
        self._options = options
        self._rank = rank
        self._device = device
        self._model_runner = GPUModelRunner(tp_group, device, has_incident, options.pace)

    def execute_model(self, scheduled: list[str]) -> int:
        return self._model_runner.execute_model(scheduled)

    def start_up(self, stage: str) -> None:
        play(stage, self._options, self._rank)
        self._device.allocate(_USED_BYTES[stage])

    def call(self, method: str, *arguments: list[str]) -> int | None:
        """Run a method by the name that vLLM has for it."""
        if method in stages():
            self.start_up(method)
            return None
        return self.execute_model(*arguments)
