"""Ends a rank that has stopped making progress, and reports what it was doing."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from datamodules.video.types import LAYOUT, printable
from lightning_modules.training.failure_notes import records_of
from lightning_modules.training.typed_lightning import stage_of
from rewards.errors import UserError

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: a new attempt may succeed."""

LEAVING_SECONDS = 60.0
"""How long a rank that failed may take to exit, and a stuck rank to report, before it is killed from outside of Python:
a library may hang while it holds the interpreter lock."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The last sign of life."""

    phase: str
    step: int
    """Optimizer step in progress, from 1."""
    records: tuple[str, ...]
    """Of the batch in progress, else of the last one: file, line and problem_id of each."""
    since: float
    """On the clock of `time.monotonic`."""


class Watchdog(Callback):
    """Ends this process when one phase of its work takes too long: nearly always a wait for another rank.

    A phase is the wait for a batch, the rollout, the rewards or the update of a training step, one batch of an
    evaluation, a checkpoint, the load of the model. The process reports its rank, step, phase and records, prints the
    stacks of all its threads and exits with code 75; torchrun and srun then end the run's other processes. The first
    rank to report is the one that got stuck; the others waited for it.

    A rank that fails with an exception reports the same, and is killed if it has not exited a minute later.
    """

    def __init__(self, seconds: float = 900.0) -> None:
        """
        Args:
            seconds: limit of one phase; longer than the longest rollout, checkpoint and load of the model, and shorter
                than the timeout of the process group.
        """
        if seconds <= 0:
            raise UserError(f"Watchdog.seconds is {seconds}; it must be > 0.")
        super().__init__()
        self.seconds = seconds
        self._rank = ""
        self._several_ranks = False
        self._progress = Progress(phase="start", step=1, records=(), since=time.monotonic())
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """
        Raises:
            UserError: the process group would give up first, without naming step and records.
        """
        timeout = getattr(trainer.strategy, "_timeout", None)  # Lightning has no public name for it
        if timeout is not None and trainer.world_size > 1 and timeout.total_seconds() <= self.seconds:
            raise UserError(
                f"Watchdog.seconds is {self.seconds:g}, but the process group gives up after "
                f"{timeout.total_seconds():g} s, before the watchdog can speak. Set seconds lower, or the strategy's "
                "timeout (FSDP2Strategy: timeout_seconds) higher."
            )
        self._rank = f"rank {trainer.global_rank} of {trainer.world_size} on {socket.gethostname()} (pid {os.getpid()})"
        self._several_ranks = trainer.world_size > 1
        timer = getattr(pl_module, "timer", None)
        if timer is not None:
            timer.listener = lambda phase: self._enter(f"training step, {phase}")
        self._stop()
        self._enter("set-up: reading records, loading the model")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._stopped,), name="watchdog", daemon=True)
        self._thread.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._enter("waiting for the first batch", step=trainer.global_step + 1)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._enter("training step", step=trainer.global_step + 1, records=records_of(batch))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self._enter("waiting for the next batch", step=trainer.global_step + 1)

    def on_save_checkpoint(self, *_: Any, **__: Any) -> None:
        self._enter("checkpoint, then waiting for the next batch")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._enter("end of training: last checkpoint, export")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._enter(stage_of(trainer), step=trainer.global_step + 1, records=records_of(batch))

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self._enter(f"{stage_of(trainer)}, waiting for the next batch")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._enter("end of validation")

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()
        if isinstance(exception, SystemExit):  # a signal ended this run, after its step
            return
        message = printable(str(exception), keep=LAYOUT)
        _say(f"{self._rank} failed {self._place()}\n  {type(exception).__name__}: {message}")
        if self._several_ranks:  # the others wait for this one: it must not hang on its way out
            faulthandler.dump_traceback_later(min(self.seconds, LEAVING_SECONDS), exit=True, file=_stderr())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def _enter(self, phase: str, **changed: Any) -> None:
        """Note a sign of life; `changed` are further fields of `Progress`."""
        self._progress = replace(self._progress, phase=phase, since=time.monotonic(), **changed)
        faulthandler.dump_traceback_later(self.seconds + LEAVING_SECONDS, exit=True, file=_stderr())

    def _place(self) -> str:
        last = self._progress
        return f"in step {last.step}, phase: {last.phase}; records: {', '.join(last.records) or 'none yet'}"

    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(min(1.0, self.seconds / 10)):
            if time.monotonic() - self._progress.since > self.seconds:
                self._end()

    def _end(self) -> None:
        _say(
            f"{self._rank} has made no progress for {self.seconds:g} s {self._place()}\n"
            f"  It ends with exit code {EXIT_CODE}. Compare the phases that the ranks name: those in an earlier phase "
            "held up the others.\n"
            "  Resume with --ckpt_path last; a longer limit is Watchdog.seconds. Stacks of its threads:"
        )
        faulthandler.dump_traceback(file=_stderr(), all_threads=True)
        os._exit(EXIT_CODE)

    def _stop(self) -> None:
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()


def _say(message: str) -> None:
    """One write, so that lines of several ranks do not mix."""
    _stderr().write(f"watchdog: {message}\n")
    _stderr().flush()


def _stderr() -> TextIO:
    """The process's own, whatever stands in its place by now."""
    assert sys.__stderr__ is not None, "only a program without a console has none"
    return sys.__stderr__
