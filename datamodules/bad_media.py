"""Records that cannot be used in a long run: another one takes the place, all are listed, too many end the run.

Loader workers find them and send them along with their batch; the main process of each rank writes and counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from datamodules.sampler import sample_seed
from datamodules.types import BadRecord, VideoRecord
from datamodules.video.types import ReaderStartError, printable
from rewards.errors import UserError

OnBadMedia = Literal["raise", "quarantine"]

FILE_NAME = "bad_media.jsonl"
MAX_SUBSTITUTES = 20
"""Records tried for one place: so many bad ones in a row are no accident."""
FEWEST_RECORDS = 200
"""The limit is a fraction of at least so many records, or of the data where it has fewer: a bad one among the first
three says nothing yet."""


NO_FAULT_OF_THE_RECORD = (ImportError, ReaderStartError)
"""Exceptions of reading that every other record would meet too."""


class BadRecordError(UserError):
    """A record that cannot be used; the message begins with its place."""


def bad_record(record: VideoRecord, error: Exception) -> BadRecord:
    """The record and the reason against it, fit for a log."""
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    reason = f"{name}{error}".removeprefix(f"{record.where}: ")
    return BadRecord(
        file=str(record.file),
        line=record.line,
        problem_id=record.problem_id,
        path=record.path,
        reason=printable(reason),
    )


def substitutes(records: Sequence[VideoRecord], index: int) -> Iterator[int]:
    """Places of other records of the same data type, in an order that depends on `index` alone.

    Not one after the other: where a folder is missing, the neighbors are bad too.
    """
    data_type, count = records[index].data_type, len(records)
    start, stride = (sample_seed(0, 0, index, member) % count for member in range(2))
    while math.gcd(stride, count) > 1:  # or it would not reach them all
        stride += 1
    for step in range(count):
        place = (start + step * stride) % count
        if place != index and records[place].data_type == data_type:
            yield place


@dataclass(kw_only=True)
class BadMediaLog:
    """The list of bad records of a run, and the limit of how many there may be."""

    file: Path | None
    """JSON lines, one per bad record; all ranks and all starts of a run append to it. None writes nothing."""
    num_records: int
    """Records of the data."""
    max_fraction: float
    """Of the records drawn by this process since its start."""
    drawn: int = 0
    bad: int = 0
    _size: int = -1

    def __post_init__(self) -> None:
        self._listed = {_place(row) for row in self._rows()}

    def note(self, size: int, bad_records: Sequence[BadRecord]) -> None:
        """List what is new.

        Args:
            size: records in the batch.
            bad_records: those that it was to hold besides.

        Raises:
            UserError: more than `max_fraction` were bad.
        """
        self.drawn += size + len(bad_records)
        self.bad += len(bad_records)
        for record in bad_records:
            row = asdict(record)
            if _place(row) not in self._listed:
                self._listed.add(_place(row))
                self._append(row)
        if self.bad > self.max_fraction * max(self.drawn, min(self.num_records, FEWEST_RECORDS)):
            last = bad_records[-1]
            listed = "" if self.file is None else f" All are listed in {self.file}."
            raise UserError(
                f"{self.bad:,} of the {self.drawn:,} records drawn by this process could not be used, more than "
                f"data.init_args.max_bad_fraction {self.max_fraction:g}. The last: {printable(last.file)}:{last.line} "
                f"(problem_id {printable(last.problem_id)}): {last.reason}{listed} Look whether data_root is complete "
                "(`python cli.py check data`), or raise the fraction."
            )

    def grown(self) -> int | None:
        """How many records the list of all ranks holds; None where it is as long as at the last call."""
        size = self.file.stat().st_size if self.file is not None and self.file.exists() else 0
        if size == self._size:
            return None
        self._size = size
        return len({_place(row) for row in self._rows()})

    def _rows(self) -> Iterator[dict]:
        if self.file is not None and self.file.exists():
            with self.file.open(encoding="utf-8") as lines:
                # The last line of a run that was killed may be cut off.
                yield from (json.loads(line) for line in lines if line.endswith("}\n"))

    def _append(self, row: dict) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab", buffering=0) as file:
            file.write(f"{json.dumps(row)}\n".encode())  # one call, so that lines of several ranks stay whole


def _place(row: dict) -> tuple[str, int]:
    return row["file"], row["line"]
