"""Ends training by a signal: after the step in progress, with a checkpoint, and with a status that says so."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_modules.training.typed_lightning import is_fast_dev_run

STATUS: Mapping[int, int] = MappingProxyType({signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130})
"""Exit status by signal; 143 (128 + SIGTERM) means that the run was pre-empted and can be started again as it was."""


class _Phase(Enum):
    BEFORE = "before the first step"
    TRAINING = "in training"
    STOPPING = "stopping"
    FINISHING = "finishing"
    OVER = "over"


class StopOnSignal(Callback):
    """SIGTERM, SIGUSR1 and Ctrl-C end the optimizer step in progress, write a checkpoint and leave.

    Nothing is exported, and a validation that is due is left out. One that is in progress is finished first, because
    ranks cannot agree to leave it. The exit status is 143 after SIGTERM and SIGUSR1, 130 after Ctrl-C; a second Ctrl-C
    ends the process at once. One signal to any of the ranks is enough. Before the first step there is nothing to save;
    after the last one, the export and what else belongs to the end of a training is completed.

    The checkpoint is `last.ckpt` in the folder of the first ModelCheckpoint, or in `checkpoints` below the trainer's
    default_root_dir. On the command line every fit has this callback; in Python it is
    `Trainer(callbacks=[..., StopOnSignal()])`, and `Trainer.fit` raises SystemExit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._phase = _Phase.BEFORE
        self._signal: int | None = None
        self._step_before = 0
        self._checkpoint: Path | None = None
        self._former: dict[int, Any] = {}
        self._trainer: pl.Trainer | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != TrainerFn.FITTING or threading.current_thread() is not threading.main_thread():
            return
        self._trainer, self._phase, self._signal, self._checkpoint = trainer, _Phase.BEFORE, None, None
        self._former = {number: signal.getsignal(number) for number in STATUS}
        self._listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._former:
            self._listen()  # Lightning's own handler waits for other ranks in the middle of whatever they do
            self._phase = _Phase.TRAINING

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        if not self._former or trainer.global_step == self._step_before:
            return  # gradients that are still gathered would be lost
        number = torch.tensor(self._signal or 0, device=pl_module.device)
        self._signal = int(trainer.strategy.reduce(number, reduce_op="max")) or None
        if self._signal is not None:
            self._phase = _Phase.STOPPING
            self._save(trainer)
            # The loop then logs the step and leaves, on all ranks. Lightning has no public name for it.
            trainer._signal_connector.received_sigterm = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._phase is _Phase.STOPPING:
            raise SIGTERMException

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._phase = _Phase.FINISHING

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._phase is not _Phase.STOPPING or not isinstance(exception, SystemExit):
            self._phase = _Phase.OVER
            return
        launched = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
        launched = launched and trainer.world_size > 1
        assert self._signal is not None, "only a signal starts this phase"
        # Lightning kills the first process as soon as one that it launched has left with another status than 0.
        exception.code = 0 if launched and not trainer.is_global_zero else STATUS[self._signal]
        if trainer.is_global_zero:
            what = f"{signal.Signals(self._signal).name} ended this training after step {trainer.global_step}"
            if self._checkpoint is None:
                _say(f"{what}; there was nothing to save.")
            else:
                _say(f"{what}. Checkpoint: {self._checkpoint}\nThe same command with --ckpt_path last goes on from it.")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._former:
            self._phase = _Phase.OVER
            for number, handler in self._former.items():
                signal.signal(number, handler)
            self._former = {}

    def _listen(self) -> None:
        for number in STATUS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler of this process."""
        if self._phase is _Phase.OVER:  # an exception is on its way out; the signal means what it meant before
            signal.signal(number, self._former.get(number, signal.SIG_DFL))
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            self._end_at_once()
        first, self._signal = self._signal is None, self._signal or number
        if self._phase is _Phase.BEFORE:
            self._phase = _Phase.STOPPING
            self._pass_on(number)
            raise SystemExit(STATUS[number])
        if first and self._trainer is not None and self._trainer.is_global_zero:
            again = " Ctrl-C again ends it at once." if number == signal.SIGINT else ""
            what = "the training is over and completes its export" if self._phase is _Phase.FINISHING else "ending"
            _say(f"{signal.Signals(number).name}: {what}{'' if 'over' in what else ' the step in progress'}.{again}")

    def _end_at_once(self) -> None:
        self._pass_on(signal.SIGKILL)
        _say("Ctrl-C again: ended at once, without a checkpoint.")
        os._exit(STATUS[signal.SIGINT])

    def _pass_on(self, number: int) -> None:
        """Send a signal to the processes that this one launched."""
        launcher = None if self._trainer is None else self._trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(number)

    def _save(self, trainer: pl.Trainer) -> None:
        if is_fast_dev_run(trainer):
            return
        callbacks = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        if callbacks:
            first = callbacks[0]
            assert first.dirpath is not None, "ModelCheckpoint sets it before training starts"
            # So that a resumed ModelCheckpoint knows the file and replaces it.
            first.last_model_path = first.last_model_path or str(Path(first.dirpath) / "last.ckpt")
            self._checkpoint = Path(first.last_model_path)
        else:
            self._checkpoint = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(self._checkpoint)


def _say(message: str) -> None:
    """One write, so that lines of several ranks do not mix."""
    stream = sys.__stderr__ or sys.stderr
    stream.write(f"\n{message}\n")
    stream.flush()
