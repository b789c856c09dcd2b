"""Every exception of a run says where it happened: rank, step and records."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from datamodules.types import PromptBatch, SFTBatch
from lightning_modules.training.typed_lightning import stage_of


class FailureNotes(Callback):
    """Adds rank, step and the records in progress to an exception; Python shows the note below its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._place = "before the first batch"

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        self._place = f"in {stage_of(trainer)}; records: {', '.join(records_of(batch))}"

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        self._place = f"after a batch of {stage_of(trainer)}; its records: {', '.join(records_of(batch))}"

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        exception.add_note(
            f"On rank {trainer.global_rank} of {trainer.world_size}, after {trainer.global_step} optimizer steps, "
            f"{self._place}"
        )


def records_of(batch: Any) -> tuple[str, ...]:
    """File, line and problem_id of the records in a batch of this project; of another one, its type."""
    if isinstance(batch, PromptBatch):
        return tuple(prompt.record.where for prompt in batch.prompts)
    if isinstance(batch, SFTBatch):
        return tuple(record.where for record in batch.records)
    return (f"those of a {type(batch).__name__}",)
