"""Writes what validation, test and predict steps return to one JSONL file, as it comes.

Each finished batch is on the disk before the next one starts. The final name appears only when the run is complete:
until then the rows stand in a part of each rank, see `lightning_modules.evaluation.journal`.
"""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.evaluation.journal import Journal
from lightning_modules.training.typed_lightning import from_rank_zero, is_fast_dev_run
from rewards.errors import UserError

Row = dict[str, Any]
"""A plain JSON object of the user's own form, with a `problem_id`."""


class PredictionWriter(Callback):
    """Collects the rows that `validation_step`, `test_step` or `predict_step` return.

    A step returns a list of rows, or None for nothing. A row is a plain JSON object with a `problem_id`. The file
    holds the rows in record order also when several processes wrote them, given a sampler that deals record i to
    rank i modulo the number of ranks. The next validation of a fit replaces the file.
    """

    def __init__(self, output: str | None = None) -> None:
        """
        Args:
            output: JSONL file to write; relative to the working directory. With several nodes it must lie on a file
                system that all of them share. Default: `predictions.jsonl` in the folder of this start's logs, or
                `predictions-2.jsonl` and so on where an earlier start left one.
        """
        super().__init__()
        self.output = None if output is None else Path(output)
        self._journal: Journal | None = None

    def check_unused(self, trainer: pl.Trainer) -> None:
        """
        Raises:
            UserError: the file to write is that of an earlier run.
        """
        if self.output is not None and not is_fast_dev_run(trainer) and self.output.exists():
            raise UserError(
                f"PredictionWriter.output is {str(self.output)!r}, which holds the predictions of an earlier run. Give "
                "another file, or none to have a new one for every start, or move that one away."
            )

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if is_fast_dev_run(trainer):
            rank_zero_info("PredictionWriter writes nothing in a fast_dev_run.")
            return
        if self._journal is None:
            self._journal = Journal(self._file(trainer))
        self._journal.open(trainer.global_rank)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._journal is None or not self._journal.is_open or outputs is None:
            return
        _check_rows(outputs)
        # The place of a row among those of its process is what the merge needs.
        self._journal.append(
            _encoded({"order": [dataloader_idx, batch_idx, number], "row": row}, row["problem_id"]) + "\n"
            for number, row in enumerate(outputs)
        )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._journal is None or not self._journal.is_open:
            return
        self._journal.close()
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            _merge(self._journal, trainer.world_size)
        # No process may start the next run, and with it its part, while the parts are being merged.
        trainer.strategy.barrier("predictions merged")
        rank_zero_info(f"Predictions: {self._journal.output}")

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._journal is not None and self._journal.is_open:
            self._journal.close()
            parts = ", ".join(map(str, self._journal.parts()))
            rank_zero_info(
                f"The predictions of the finished batches are in {parts}; {self._journal.output} is unchanged."
            )

    def _file(self, trainer: pl.Trainer) -> Path:
        """The file to write, the same on all ranks."""
        if self.output is not None:
            return self.output
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        return from_rank_zero(trainer.strategy, lambda: _free_file(folder))


def _free_file(folder: Path) -> Path:
    names = chain(["predictions.jsonl"], (f"predictions-{number}.jsonl" for number in count(2)))
    journals = (Journal(folder / name) for name in names)
    return next(each.output for each in journals if not each.output.exists() and not each.parts())


def _merge(journal: Journal, ranks: int) -> None:
    """Parts of all ranks into the output, in record order.

    A distributed sampler repeats records so that all ranks have equally many: of a record that several ranks
    answered, the rows of the first one are kept.
    """
    parts = [journal.part(rank) for rank in range(ranks)]
    missing = [str(part) for part in parts if not part.exists()]
    if missing:
        raise UserError(
            f"Rank 0 does not see {', '.join(missing)}. Give PredictionWriter an output on a file system that all "
            "nodes share; each node's rows are in its own .partial files."
        )
    rows = sorted(
        (
            (*entry["order"], rank, entry["row"])
            for rank, part in enumerate(parts)
            for entry in map(json.loads, part.read_text(encoding="utf-8").split("\n")[:-1])
        ),
        key=lambda entry: entry[:4],
    )
    owners: dict[tuple[int, Any], int] = {}
    kept = [
        row for dataloader, _, _, rank, row in rows if owners.setdefault((dataloader, row["problem_id"]), rank) == rank
    ]
    journal.publish(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    if len(kept) < len(rows):
        rank_zero_info(
            f"{len(rows) - len(kept)} rows of records that the sampler repeated to fill the last batches are left out."
        )


def _check_rows(rows: Any) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "problem_id" in row for row in rows):
        raise UserError(
            f"PredictionWriter needs steps that return None or a list of dicts with a problem_id; got {rows!r:.200}. "
            "Return rows from the step, or remove the callback."
        )


def _encoded(line: dict[str, Any], problem_id: Any) -> str:
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The prediction of problem_id {problem_id} is not plain JSON: {error}. "
            "Rows hold strings, finite numbers, booleans, None, and lists and dicts of these."
        ) from error
