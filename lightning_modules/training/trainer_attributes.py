"""What a Trainer of Lightning has without declaring it."""

from __future__ import annotations

import lightning.pytorch as pl


def is_fast_dev_run(trainer: pl.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # pyright: ignore[reportAttributeAccessIssue]


def datamodule_of(trainer: pl.Trainer) -> pl.LightningDataModule | None:
    return trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
