"""A folder that several ranks fill together, and that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lightning.pytorch.strategies import Strategy

from datamodules.whole_files import whole_folder
from lightning_modules.training.typed_lightning import from_rank_zero


@contextmanager
def shared_folder(strategy: Strategy, path: Path) -> Iterator[Path]:
    """`whole_folder` for all ranks: each gets the same empty folder; it takes its place at the end of the block.

    Args:
        strategy: of the trainer.
        path: folder to make or replace; that of rank 0 counts.
    """
    with ExitStack() as stack:
        yield from_rank_zero(strategy, lambda: stack.enter_context(whole_folder(path)))
        strategy.barrier("folder written")
    strategy.barrier("folder in place")
