"""Predictions on the disk while they are made: an interruption at any moment loses at most the batches in progress.

Every rank appends its finished batches to `predictions.rankR.partial.jsonl`, on the disk before the next one begins.
When a run starts, rank 0 gathers what earlier ones have finished in `predictions.partial.jsonl`; when all questions are
answered, it writes `predictions.jsonl` and removes the parts. Each file appears whole, by renaming, before what it
replaces goes, so a copy may be left over, but nothing is lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from datamodules.atomic_file import write_atomically
from datamodules.evaluation.benchmark_datamodule import ItemKey
from rewards.evaluation.predictions import Prediction, prediction_from, read_predictions

Answered = dict[ItemKey, Prediction]


class PredictionJournal:
    """The predictions of one run folder.

    Args:
        folder: of the run; on a file system that all nodes share.
        batches: all batches of the run, in order.
    """

    def __init__(self, folder: Path, batches: Sequence[Sequence[ItemKey]]) -> None:
        self.folder = folder
        self.batches = batches
        self.output = folder / "predictions.jsonl"
        self._gathered = folder / "predictions.partial.jsonl"
        self._file: TextIO | None = None

    def gather(self, *, retry_failed: bool = False) -> None:
        """Put the finished batches of earlier runs together; rank 0 calls it before any rank opens.

        Args:
            retry_failed: take batches with a failed item as not finished.

        Raises:
            ValueError: a part holds something else than predictions of this run.
        """
        answered = self._finished(retry_failed)
        if self.output.exists() and len(answered) == sum(map(len, self.batches)):
            _remove(self._parts())  # left over by a run that was interrupted after its last step
            return
        parts = self._parts()
        if parts or self.output.exists():
            _write(self._gathered, answered.values())
            _remove(path for path in parts if path != self._gathered)
            _remove([self.output])

    def answered(self) -> Answered:
        """What `gather` left, by item, in the order of the run."""
        return self._finished(retry_failed=False)

    def open(self, rank: int) -> None:
        """Begin this rank's part."""
        self._file = (self.folder / f"predictions.rank{rank}.partial.jsonl").open("w", encoding="utf-8")

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Add a finished batch; it is on the disk when this returns."""
        assert self._file is not None, "open comes first"
        self._file.write("".join(prediction.to_line() for prediction in predictions))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End this rank's part."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> list[Prediction] | None:
        """All predictions, once all questions are answered, and then in their final file; rank 0 calls it at the end.

        Returns:
            In the order of the run; None where questions are left, and then parts stay for the next run.
        """
        answered = self._finished(retry_failed=False)
        if len(answered) < sum(map(len, self.batches)):
            return None
        if not self.output.exists():
            _write(self.output, answered.values())
        _remove(self._parts())
        return list(answered.values())

    def _finished(self, retry_failed: bool) -> Answered:
        """The predictions of whole batches. A batch that was interrupted is answered anew as a whole: its items would
        otherwise be padded differently."""
        paths = [*self._parts(), self.output] if self.output.exists() else self._parts()
        found: Answered = {}
        for path in paths:
            for prediction in _read_part(path) if path != self.output else read_predictions(path):
                key = ItemKey(prediction.benchmark, prediction.index)
                if found.setdefault(key, prediction) != prediction:
                    raise ValueError(
                        f"{path}: item {key.index} of {key.benchmark} has another answer than in another file of "
                        f"{self.folder}. Two runs have written into this folder at a time; start anew in another one."
                    )
        finished: Answered = {}
        for batch in self.batches:
            members = {key: found[key] for key in batch if key in found}
            failed = any(prediction.failure is not None for prediction in members.values())
            if len(members) == len(batch) and not (retry_failed and failed):
                finished.update(members)
        unknown = found.keys() - {key for batch in self.batches for key in batch}
        assert not unknown, f"the manifest of {self.folder} covers the questions, but {min(unknown)} is none"
        return finished

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("predictions*.partial.jsonl"))


def _write(path: Path, predictions: Iterable[Prediction]) -> None:
    write_atomically(path, "".join(prediction.to_line() for prediction in predictions))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _read_part(path: Path) -> Iterable[Prediction]:
    """Predictions of a part whose last line may be cut off.

    Raises:
        ValueError: another line is no prediction.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line feed is cut off, or nothing
        try:
            yield prediction_from(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}. Remove this line; its question is answered again.") from error
