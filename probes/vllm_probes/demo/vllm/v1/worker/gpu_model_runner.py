"""One rank's forward pass, and the incident."""

import threading
import time

from vllm_probes.demo.devices import COMPUTES, Device
from vllm_probes.demo.vllm.distributed.parallel_state import GroupCoordinator

FORWARD_S = 0.06
SERVING_S = 20.0
"""From a rank's first step to the incident."""


class GPUModelRunner:
    """Runs steps; the rank with the incident stops in one of them for ever."""

    def __init__(self, tp_group: GroupCoordinator, device: Device, has_incident: bool, pace: float) -> None:
        self._tp_group = tp_group
        self._device = device
        self._has_incident = has_incident
        self._pace = pace
        self._incident_at: float | None = None
        self._batch_lock = threading.Lock()
        self._batch: list[str] = []

    def execute_model(self, scheduled: list[str]) -> int:
        """One step for these requests; the number of tokens, one each."""
        self._update_states(scheduled)
        self._model_forward()
        return len(scheduled)

    def _update_states(self, scheduled: list[str]) -> None:
        with self._batch_lock:
            if self._incident_is_due():
                self._condense()
            self._batch = scheduled

    def _condense(self) -> None:
        # The incident: the lock is not re-entrant, and the caller holds it.
        with self._batch_lock:
            self._batch = []

    def _model_forward(self) -> None:
        self._device.does(COMPUTES)
        time.sleep(FORWARD_S)
        self._tp_group.all_reduce()

    def _incident_is_due(self) -> bool:
        if not self._has_incident:
            return False
        now = time.monotonic()
        if self._incident_at is None:
            self._incident_at = now + SERVING_S / self._pace
        return now >= self._incident_at
