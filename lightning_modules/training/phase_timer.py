"""Wall time of the phases of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Seconds per named phase of one step; "data" is the wait for its batch.

    On CUDA a phase ends when its kernels have run, or its time would be charged to the next one.
    """

    def __init__(self) -> None:
        self.listener: Callable[[str], None] | None = None
        """Told the name of every phase that begins, and "between phases" when one ends."""
        self._seconds: dict[str, float] = {}
        self._step_started = 0.0
        self._last_step_ended: float | None = None

    def begin_step(self) -> None:
        """Charge the time since the last step's end to "data"."""
        self._step_started = time.perf_counter()
        self._seconds = {}
        if self._last_step_ended is not None:
            self._seconds["data"] = self._step_started - self._last_step_ended

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the block to `name`."""
        started = time.perf_counter()
        self._tell(name)
        try:
            yield
        finally:  # also of a phase that was left early: ranks compare the seconds of all phases
            _wait_for_device()
            self._tell("between phases")
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def end_step(self, rest: str) -> dict[str, float]:
        """Seconds per phase of this step and its "step" in all; what no phase took is charged to `rest`."""
        _wait_for_device()
        self._last_step_ended = time.perf_counter()
        step = self._last_step_ended - self._step_started
        charged = sum(seconds for name, seconds in self._seconds.items() if name != "data")
        self._seconds[rest] = self._seconds.get(rest, 0.0) + step - charged
        return {**self._seconds, "step": step + self._seconds.get("data", 0.0)}

    def pause(self) -> None:
        """Do not charge what comes next (a validation) to "data"."""
        self._last_step_ended = None

    def _tell(self, name: str) -> None:
        if self.listener is not None:
            self.listener(name)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
