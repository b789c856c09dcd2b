"""Writes what validation, test and predict steps return to one JSONL file, as it comes.

Each finished batch is on the disk before the next one starts. The final name appears only when the run is complete:
until then the rows stand in `OUTPUT.partial`, or, with several processes, in `OUTPUT.rank0.partial`, ...
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info


class PredictionWriter(Callback):
    """Collects the rows that `validation_step`, `test_step` or `predict_step` return.

    A step returns a list of rows, or None for nothing. A row is a plain JSON object with a `problem_id`. The file
    holds the rows in record order also when several processes wrote them, given a sampler that deals record i to
    rank i modulo the number of ranks. A later run, such as the next validation of a fit, replaces the file.
    """

    def __init__(self, output: str) -> None:
        """
        Args:
            output: JSONL file to write; relative to the working directory. With several nodes it must lie on a file
                system that all of them share.
        """
        super().__init__()
        self.output = Path(output)
        self._part: Path | None = None
        self._file: TextIO | None = None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open(trainer)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open(trainer)

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._append(trainer, outputs, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._append(trainer, outputs, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._append(trainer, outputs, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish(trainer)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish(trainer)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            rank_zero_info(f"The predictions of the finished batches are in {self._part}; {self.output} is unchanged.")

    def _open(self, trainer: pl.Trainer) -> None:
        if trainer.sanity_checking:
            return
        if trainer.fast_dev_run:
            rank_zero_info("PredictionWriter writes nothing in a fast_dev_run.")
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._part = _partial(self.output)
        if trainer.world_size > 1:
            self._part = _rank_part(self.output, trainer.global_rank)
        self._file = self._part.open("w", encoding="utf-8")

    def _append(self, trainer: pl.Trainer, rows: Any, batch_idx: int, dataloader_idx: int) -> None:
        if self._file is None or rows is None:
            return
        _check_rows(rows)
        for number, row in enumerate(rows):
            # The place of a row among those of its process is what the merge needs.
            line = row if trainer.world_size == 1 else {"order": [dataloader_idx, batch_idx, number], "row": row}
            self._file.write(_encoded(line, row["problem_id"]) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _finish(self, trainer: pl.Trainer) -> None:
        if self._file is None:
            return
        assert self._part is not None
        self._file.close()
        self._file = None
        if trainer.world_size == 1:
            self._part.replace(self.output)
        else:
            trainer.strategy.barrier("predictions written")
            if trainer.is_global_zero:
                _merge([_rank_part(self.output, rank) for rank in range(trainer.world_size)], self.output)
            # No process may start the next run, and with it its part, while the parts are being merged.
            trainer.strategy.barrier("predictions merged")
        rank_zero_info(f"Predictions: {self.output}")


def _partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def _rank_part(output: Path, rank: int) -> Path:
    return output.with_name(f"{output.name}.rank{rank}.partial")


def _check_rows(rows: Any) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "problem_id" in row for row in rows):
        raise ValueError(
            f"PredictionWriter needs steps that return None or a list of dicts with a problem_id; got {rows!r:.200}. "
            "Return rows from the step, or remove the callback."
        )


def _encoded(line: dict[str, Any], problem_id: Any) -> str:
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The prediction of problem_id {problem_id} is not plain JSON: {error}. "
            "Rows hold strings, finite numbers, booleans, None, and lists and dicts of these."
        ) from error


def _merge(parts: list[Path], output: Path) -> None:
    """Parts of all ranks into `output`, in record order; then the parts are removed.

    A distributed sampler repeats records so that all ranks have equally many: of a record that several ranks answered,
    the rows of the first one are kept.
    """
    missing = [str(part) for part in parts if not part.exists()]
    if missing:
        raise ValueError(
            f"Rank 0 does not see {', '.join(missing)}. Give PredictionWriter an output on a file system that all "
            "nodes share; each node's rows are in its own .partial files."
        )
    owners: dict[tuple[int, Any], int] = {}
    repeated = 0
    with _partial(output).open("w", encoding="utf-8") as file:
        for order, rank, row in heapq.merge(*(_ordered(part, rank) for rank, part in enumerate(parts)), key=_place):
            if owners.setdefault((order[0], row["problem_id"]), rank) != rank:
                repeated += 1
                continue
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _partial(output).replace(output)
    for part in parts:
        part.unlink()
    if repeated:
        rank_zero_info(f"{repeated} rows of records that the sampler repeated to fill the last batches are left out.")


def _ordered(part: Path, rank: int) -> Iterator[tuple[list[int], int, dict[str, Any]]]:
    with part.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            yield entry["order"], rank, entry["row"]


def _place(item: tuple[list[int], int, dict[str, Any]]) -> tuple[list[int], int]:
    return item[0], item[1]
