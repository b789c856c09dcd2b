"""Calls of Lightning with the types that they have: what it sets without declaring it, and exchanges between ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import lightning.pytorch as pl
from lightning.pytorch.strategies import Strategy

Value = TypeVar("Value")


def is_fast_dev_run(trainer: pl.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # pyright: ignore[reportAttributeAccessIssue] - set, not declared


def datamodule_of(trainer: pl.Trainer) -> pl.LightningDataModule | None:
    return trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] - likewise


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - likewise


def stage_of(trainer: pl.Trainer) -> str:
    """train, validate, test or predict, while a batch is in progress."""
    assert trainer.state.stage is not None, "every batch belongs to a stage"
    return trainer.state.stage.value


def from_rank_zero(strategy: Strategy, make: Callable[[], Value]) -> Value:
    """What `make` gives on rank 0, where alone it is called, on all ranks."""
    value = strategy.broadcast(make() if strategy.is_global_zero else None)
    assert value is not None, "rank 0 makes something"
    return value
