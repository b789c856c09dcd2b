"""Keeps every rollout of a training run as Parquet files, for `check rewards --rollouts` and for data frames."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.whole_files import whole_file
from lightning_modules.rollout_log.stored_rows import Row, as_table, stored_rows
from lightning_modules.rollouts.sample import RolloutSample, latest_rollouts
from lightning_modules.training.typed_lightning import is_fast_dev_run
from rewards.errors import UserError

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_ROW_GROUP = 1024
"""The least that a reader has to load at once; with completions of 1024 tokens about 5 MB."""

_FILE_NAME = re.compile(r"rollouts-step(?P<first>\d+)-(?P<last>\d+)-rank(?P<rank>\d+)\.parquet")


class RolloutStore(Callback):
    """Writes one row per completion to `rollouts-stepFIRST-LAST-rankRANK.parquet`; columns: `stored_rows.COLUMNS`.

    The module's attribute `last_rollouts` (a `RolloutSample`, a new one after every batch) is what is stored. A file
    is written whenever enough rows have gathered, before every checkpoint, when training ends and when it is
    interrupted; it appears complete or not at all.

    Rows and checkpoints agree by their step. What a checkpoint contains is on the disk before the checkpoint is, and a
    run that starts at step N first sets all files with rows beyond N aside as `FILE.supersededK`, which readers of
    `*.parquet` do not see (of a file with rows on both sides of N, those up to N stay). So a resumed run loses nothing
    and repeats nothing, whatever was written after its checkpoint, and a fresh run (N = 0) does not mix with an earlier
    one in the same folder.
    """

    def __init__(self, output: str | None = None, rows_per_file: int = 4096, every_n_steps: int = 1) -> None:
        """
        Args:
            output: folder to write, relative to the working directory. Default: `rollouts` in the trainer's
                `default_root_dir`.
            rows_per_file: completions gathered in memory before a file is written; the batch that reaches this number
                is written whole.
            every_n_steps: store the batches in which the count of optimizer steps reaches a multiple of this.
        """
        for name, value in (("rows_per_file", rows_per_file), ("every_n_steps", every_n_steps)):
            if value < 1:
                raise UserError(f"RolloutStore.{name} is {value}; it must be at least 1.")
        super().__init__()
        self.output = output
        self.rows_per_file = rows_per_file
        self.every_n_steps = every_n_steps
        self._folder: Path | None = None
        # By step, so that a batch taken twice or a file written twice around an interrupt replaces its own copy.
        self._pending: dict[int, list[Row]] = {}
        self._written = 0
        self._step_before: int | None = None
        self._sample_before: RolloutSample | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check before training what would fail after the first batches.

        Raises:
            UserError: the module has no `last_rollouts`, or the output is a file.
        """
        if stage != TrainerFn.FITTING:
            return
        import pyarrow.parquet  # noqa: F401 - it takes a moment, and an ImportError belongs here

        if not hasattr(pl_module, "last_rollouts"):
            raise UserError(
                f"RolloutStore needs a module with `last_rollouts`; {type(pl_module).__name__} has none. "
                "Remove the callback from this run."
            )
        folder = self._output_folder(trainer)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"RolloutStore.output is {folder}, which is not a folder. Choose another one.")

    def check_unused(self, trainer: pl.Trainer) -> None:
        """
        Raises:
            UserError: the folder holds rollouts already, and this run does not continue the one that stored them.
        """
        folder = self._output_folder(trainer)
        if not is_fast_dev_run(trainer) and folder.is_dir() and _rollout_files(folder):
            raise UserError(
                f"{folder} holds the rollouts of an earlier run, which this one would set aside. Continue that run "
                "with --ckpt_path last, or give this one a folder of its own with trainer.default_root_dir (or "
                "RolloutStore.output), or move the rollouts away."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_fast_dev_run(trainer):
            rank_zero_info("RolloutStore stores nothing in a fast_dev_run.")
            return
        self._folder = self._output_folder(trainer)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Each file belongs to one rank, also after a change of their number, so no rank has to wait for another.
        for path, first, last, rank in _rollout_files(self._folder):
            if last > trainer.global_step and rank % trainer.world_size == trainer.global_rank:
                _set_aside(path, first, trainer.global_step, rank)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        self._sample_before = latest_rollouts(pl_module)
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        self._take(trainer, pl_module)
        # Validation samples too; its rollouts are none of training's.
        self._step_before = self._sample_before = None
        if sum(map(len, self._pending.values())) >= self.rows_per_file:
            self._write(trainer.global_rank)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        self._take(trainer, pl_module)
        self._write(trainer.global_rank)

    on_exception = on_save_checkpoint

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer.global_rank)
        if self._folder is None:
            return
        if self._written:
            rank_zero_info(f"Rollouts: {self._written:,} completions of this process in {self._folder}")
        else:
            rank_zero_warn(
                "RolloutStore stored nothing: no step left rollouts behind, or none of the steps reached a multiple of "
                f"every_n_steps ({self.every_n_steps})."
            )

    def _output_folder(self, trainer: pl.Trainer) -> Path:
        return Path(self.output if self.output is not None else Path(trainer.default_root_dir) / "rollouts").resolve()

    def _take(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather what the batch in progress has left behind, if it has."""
        if self._folder is None or self._step_before is None:
            return
        sample, step = latest_rollouts(pl_module), trainer.global_step
        # A batch may hold several optimizer steps, so the count can jump over a multiple of the interval.
        reached = step // self.every_n_steps > self._step_before // self.every_n_steps
        if sample is not None and sample is not self._sample_before and reached:
            self._pending[step] = stored_rows(sample, step=step, rank=trainer.global_rank)
            self._sample_before = sample

    def _write(self, rank: int) -> None:
        if self._folder is None or not self._pending:
            return
        rows = [row for step in sorted(self._pending) for row in self._pending[step]]
        _write_table(as_table(rows), self._folder / _file_name(min(self._pending), max(self._pending), rank))
        self._written += len(rows)
        self._pending = {}


def _file_name(first: int, last: int, rank: int) -> str:
    return f"rollouts-step{first:06d}-{last:06d}-rank{rank}.parquet"


def _rollout_files(folder: Path) -> list[tuple[Path, int, int, int]]:
    """Path, first step, last step and rank of every file written here."""
    matches = [(path, _FILE_NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [(path, int(match["first"]), int(match["last"]), int(match["rank"])) for path, match in matches if match]


def _set_aside(path: Path, first: int, step: int, rank: int) -> None:
    """Take rows beyond `step` out of sight: the file as it was gets a name that is not Parquet's."""
    aside = next(
        name for number in count(1) if not (name := path.with_name(f"{path.name}.superseded{number}")).exists()
    )
    if first <= step:
        import pyarrow.parquet

        chosen = [("step", "<=", step)]
        # None is documented, but pyarrow has no annotations and the default is a string.
        kept = pyarrow.parquet.read_table(path, filters=chosen, partitioning=None)  # pyright: ignore[reportArgumentType]
        _write_table(kept, path.with_name(_file_name(first, max(kept["step"].to_pylist()), rank)))
    path.rename(aside)
    rank_zero_info(f"{path.name} holds steps after {step}, where this run starts; it is now {aside.name}.")


def _write_table(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    with whole_file(path, "wb") as file:
        pyarrow.parquet.write_table(table, file, row_group_size=ROWS_PER_ROW_GROUP, compression="zstd")
