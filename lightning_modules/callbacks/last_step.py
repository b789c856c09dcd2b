"""Keeps `last.ckpt` at the last step: Lightning writes it at its intervals only."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_modules.training.typed_lightning import datamodule_of, is_fast_dev_run


class LastStep(Checkpoint):
    """Saves the last checkpoint of every ModelCheckpoint with `save_last` when training ends, and after an error.

    What is saved after an error is the state after the last whole optimizer step, so that the batch in progress comes
    again after a resume. Several ranks cannot agree on it, since some may not know of the error: their last checkpoint
    stays the one of the last interval, and its step is named.

    It derives from Checkpoint because Lightning calls those after all other callbacks, in the order given.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        """Optimizer steps when the states were taken; None before the first step."""
        self._loop: dict[str, Any] = {}
        self._data: dict[str, Any] = {}
        self._after_error = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_fast_dev_run(trainer):
            return
        if trainer.global_step != self._step:
            self._step, self._loop = trainer.global_step, trainer.fit_loop.state_dict()
            data = datamodule_of(trainer)
            self._data = {} if data is None else {type(data).__qualname__: data.state_dict()}
        if _is_last(trainer, batch_idx):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and trainer.should_stop:  # by a metric of this validation
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self._step is None or not isinstance(exception, Exception):
            return  # signals have their own end
        if trainer.world_size > 1 or trainer.global_step != self._step:
            _name_saved_steps(trainer)
            return
        self._after_error = True
        try:
            self._save(trainer)
        except Exception as failure:  # noqa: BLE001 - it must not hide the error that ended the run
            exception.add_note(f"The last checkpoint could not be written either: {type(failure).__name__}: {failure}")
        finally:
            self._after_error = False
        _name_saved_steps(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._after_error:
            checkpoint["loops"]["fit_loop"] = self._loop
            checkpoint.update(self._data)

    def _save(self, trainer: pl.Trainer) -> None:
        if is_fast_dev_run(trainer) or self._step is None:
            return
        for callback in _with_last(trainer):
            if callback._last_global_step_saved == trainer.global_step:
                continue
            metrics = callback._monitor_candidates(trainer)
            if callback.save_last == "link" and callback.save_top_k != 0:
                callback._save_topk_checkpoint(trainer, metrics)  # what the link is to point to
            callback._save_last_checkpoint(trainer, metrics)


def _is_last(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether training ends with this batch, as far as can be known before its validation."""
    if trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step:
        return True
    progress = trainer.fit_loop.epoch_loop.batch_progress
    epoch_ends = progress.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    return epoch_ends and last_epoch


def _with_last(trainer: pl.Trainer) -> list[ModelCheckpoint]:
    return [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint) and each.save_last]


def _name_saved_steps(trainer: pl.Trainer) -> None:
    for callback in _with_last(trainer):
        path, step = callback.last_model_path, callback._last_global_step_saved
        if path and step == trainer.global_step:
            rank_zero_info(f"{path} holds the last step, {step}; --ckpt_path last goes on from it.")
        elif path:
            rank_zero_warn(f"{path} holds step {step}; the steps from there to {trainer.global_step} are not saved.")
