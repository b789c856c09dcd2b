"""Rows on the disk while they are made: an interruption at any moment loses at most the batches in progress.

Every rank appends its finished batches to a part of its own, `NAME.rankR.partial.jsonl`, on the disk before the next
one begins. What the parts make together appears whole under the final name before they are removed, so a copy may be
left over, but nothing is lost.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TextIO

from datamodules.evaluation.benchmark_datamodule import ItemKey
from datamodules.whole_files import write_whole
from rewards.errors import UserError
from rewards.evaluation.predictions import Prediction, read_predictions


class Journal:
    """The lines of one JSONL file while the ranks write them.

    Args:
        output: the final file; on a file system that all nodes share.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._file: TextIO | None = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def part(self, rank: int) -> Path:
        """The file that a rank appends to."""
        return self.output.with_name(f"{self.output.stem}.rank{rank}.partial{self.output.suffix}")

    def parts(self) -> list[Path]:
        """All parts on the disk, of earlier runs too."""
        return sorted(self.output.parent.glob(f"{glob.escape(self.output.stem)}.*partial{self.output.suffix}"))

    def open(self, rank: int) -> None:
        """Begin this rank's part."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.part(rank).open("w", encoding="utf-8")

    def append(self, lines: Iterable[str]) -> None:
        """Add the lines of a finished batch, line feeds included; they are on the disk when this returns."""
        assert self._file is not None, "open comes first"
        self._file.write("".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End this rank's part."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def publish(self, lines: Iterable[str]) -> None:
        """Write the final file and remove the parts; rank 0 calls it when no rank writes any more."""
        write_whole(self.output, "".join(lines))
        self.discard(self.parts())

    def discard(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


class PredictionJournal(Journal):
    """The predictions of a benchmark run, which goes on where an earlier one was interrupted.

    When a run starts, rank 0 gathers what earlier ones have finished in `predictions.partial.jsonl`.

    Args:
        folder: of the run.
        batches: all batches of the run, in order.
    """

    def __init__(self, folder: Path, batches: Sequence[Sequence[ItemKey]]) -> None:
        super().__init__(folder / "predictions.jsonl")
        self.batches = batches
        self._gathered = folder / "predictions.partial.jsonl"

    def gather(self, *, retry_failed: bool = False) -> None:
        """Put the finished batches of earlier runs together; rank 0 calls it before any rank opens.

        With `retry_failed`, batches with a failed item are not finished.

        Raises:
            UserError: a part holds something else than predictions of this run.
        """
        answered = self.answered(retry_failed=retry_failed)
        if self.output.exists() and self._is_complete(answered):
            self.discard(self.parts())  # left over by a run that was interrupted after its last step
            return
        parts = self.parts()
        if parts or self.output.exists():
            write_whole(self._gathered, "".join(prediction.to_line() for prediction in answered.values()))
            self.discard([*(path for path in parts if path != self._gathered), self.output])

    def finish(self) -> tuple[list[Prediction], bool]:
        """The predictions of all finished batches in the order of the run, and whether all questions are answered.

        Then they are in their final file; else parts stay for the next run. Rank 0 calls it at the end.
        """
        answered = self.answered()
        complete = self._is_complete(answered)
        if complete and self.output.exists():
            self.discard(self.parts())
        elif complete:
            self.publish(prediction.to_line() for prediction in answered.values())
        return list(answered.values()), complete

    def _is_complete(self, answered: Collection[ItemKey]) -> bool:
        return len(answered) == sum(map(len, self.batches))

    def answered(self, *, retry_failed: bool = False) -> dict[ItemKey, Prediction]:
        """The predictions of all finished batches, in the order of the run.

        A batch that was interrupted is answered anew as a whole: its items would otherwise be padded differently.
        """
        found: dict[ItemKey, Prediction] = {}
        for path in [*self.parts(), *([self.output] if self.output.exists() else [])]:
            for prediction in read_predictions(path, partial=path != self.output):
                key = ItemKey(prediction.benchmark, prediction.index)
                if found.setdefault(key, prediction) != prediction:
                    raise UserError(
                        f"{path}: item {key.index} of {key.benchmark} has another answer than in another file of "
                        f"{path.parent}. Two runs have written into this folder at a time; start anew in another one."
                    )
        finished: dict[ItemKey, Prediction] = {}
        for batch in self.batches:
            members = {key: found[key] for key in batch if key in found}
            failed = any(prediction.failure is not None for prediction in members.values())
            if len(members) == len(batch) and not (retry_failed and failed):
                finished.update(members)
        unknown = found.keys() - {key for batch in self.batches for key in batch}
        assert not unknown, f"the manifest of {self.output.parent} covers the questions, but {min(unknown)} is none"
        return finished
