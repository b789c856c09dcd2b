"""Data files as validated, lazily read sequences of `VideoRecord`.

A file is a JSON list or JSON lines (told apart by the first character, not by the suffix). Opening it reads every
record once and refuses the file when one is wrong; kept in memory are three integers per record, and the paths of the
media until `take_media`. A record is then read from its place in the file when it is asked for, so that worker
processes share nothing but the path.

Media files are not touched here: `find_missing` of `datamodules.media` looks for them.
"""

from __future__ import annotations

import bisect
import itertools
import json
import operator
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.record_schema import RecordProblem, check_record, doubt, parse_record
from datamodules.text_table import listed
from datamodules.types import VideoRecord
from rewards.errors import UserError

Place = tuple[int, int, int]
"""Of an element: line (JSONL) or number (JSON list), from 1; offset and size in bytes."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")


def scan(path: str | Path, *, require_process: bool = False) -> Iterator[VideoRecord | RecordProblem]:
    """Read a data file once, front to back, and yield a record or a problem for each of its elements.

    Args:
        path: JSON list or JSON lines.
        require_process: a record without a chain of thought is a problem (supervised fine-tuning).

    Raises:
        UserError: the file does not exist.
    """
    for _, item in _scan_with_places(_existing_file(path), require_process):
        yield item


class RecordFile(Sequence[VideoRecord]):
    """One data file as a sequence of records, read lazily; safe to pickle and to fork.

    Args:
        path: JSON list or JSON lines.
        data_root: folder that the records' `path` is relative to.
        require_process: refuse records without a chain of thought (supervised fine-tuning).

    Raises:
        UserError: the file or the folder does not exist, the file holds no record, or some of its records are
            invalid; all problems are counted and the first listed.
    """

    def __init__(self, path: str | Path, data_root: str | Path, *, require_process: bool = False) -> None:
        self.path = _existing_file(path)
        self.data_root = _existing_folder(data_root)
        self.require_process = require_process
        self._stamp = _stamp(self.path.stat())
        self.doubts: dict[str, tuple[int, int]] = {}
        """What looks like a mistake -> how many records have it, line of the first."""
        self._media: dict[str, int] = {}
        places, problems = array("q"), list[str]()
        for place, item in _scan_with_places(self.path, require_process):
            if isinstance(item, RecordProblem):
                problems.append(str(item))
            else:
                places.extend(place)
                self._note(item)
        if problems:
            raise UserError(f"{self.path} is not a valid data file: {len(problems):,} problem(s).{listed(problems)}")
        if not places:
            raise UserError(f"{self.path} holds no records. It must be a JSON list or JSON lines of records.")
        self._places = np.frombuffer(places, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def take_media(self) -> dict[str, int]:
        """Path of every media file -> line of the first record that uses it; it is empty from then on."""
        media, self._media = self._media, {}
        return media

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_media": {}}  # workers do not need it

    def _note(self, record: VideoRecord) -> None:
        if record.path is not None:
            self._media.setdefault(record.path, record.line)
        if (message := doubt(record)) is not None:
            count, line = self.doubts.get(message, (0, record.line))
            self.doubts[message] = count + 1, line

    # No slices: a file is read one record at a time.
    def __getitem__(self, index: int) -> VideoRecord:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read record `index` from the file; errors as `raw`."""
        index = _checked_index(index, len(self))
        line = int(self._places[index, 0])
        record = parse_record(self.raw(index), file=self.path, line=line, require_process=self.require_process)
        assert isinstance(record, VideoRecord), f"valid at opening, invalid now: {record}"
        return record

    def raw(self, index: int) -> bytes:
        """JSON of record `index` as it stands in the file.

        Raises:
            UserError: the file was changed after it was opened.
        """
        _, offset, size = (int(number) for number in self._places[_checked_index(index, len(self))])
        # One open per record costs microseconds and leaves no handle that a fork would share.
        with self.path.open("rb") as stream:
            if _stamp(os.fstat(stream.fileno())) != self._stamp:
                raise UserError(
                    f"{self.path} was changed while in use: its size or modification time is not that of opening. "
                    "Start again with the changed file, or train on a copy that nobody edits."
                )
            stream.seek(offset)
            return stream.read(size)


class RecordSet(Sequence[VideoRecord]):
    """Several data files as one sequence, in the given order.

    Problem ids are unique within a file only: published files number their records independently, and one question
    may stand in two of them.

    Args:
        files: opened data files with the same data root.

    Raises:
        UserError: no file, the same file twice, or files with different data roots.
    """

    def __init__(self, files: Sequence[RecordFile]) -> None:
        if not files:
            raise UserError("A record set needs at least one data file; none was given.")
        roots = sorted({str(file.data_root) for file in files})
        if len(roots) > 1:
            raise UserError(f"All data files of a set share one data root; given: {', '.join(roots)}.")
        repeated = [str(path) for path, count in Counter(file.path.resolve() for file in files).items() if count > 1]
        if repeated:
            raise UserError(f"Given more than once: {', '.join(repeated)}. Name each data file once.")
        self.files = tuple(files)
        self.data_root = files[0].data_root
        self._ends = list(itertools.accumulate(len(file) for file in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> VideoRecord:  # pyright: ignore[reportIncompatibleMethodOverride]
        index = _checked_index(index, len(self))
        number = bisect.bisect_right(self._ends, index)
        return self.files[number][index - (self._ends[number - 1] if number else 0)]


def open_records(paths: Sequence[str | Path], data_root: str | Path, *, require_process: bool = False) -> RecordSet:
    """Open data files as one set; arguments and errors as `RecordFile` and `RecordSet`."""
    return RecordSet([RecordFile(path, data_root, require_process=require_process) for path in paths])


def _scan_with_places(path: Path, require_process: bool) -> Iterator[tuple[Place, VideoRecord | RecordProblem]]:
    """Yield the place and the content of every element; a repeated problem id is a problem."""
    with path.open("rb") as stream:
        start = stream.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip()
    elements = _list_elements if start.startswith(b"[") else _line_elements
    first_lines: dict[str, int] = {}
    for place, item in elements(path, require_process):
        line = place[0]
        if isinstance(item, VideoRecord) and first_lines.setdefault(item.problem_id, line) != line:
            message = (
                f"problem_id stands at {first_lines[item.problem_id]} already. Ids are unique in a file: remove or "
                "renumber one."
            )
            item = RecordProblem(file=path, line=line, problem_id=item.problem_id, message=message)
        yield place, item


def _line_elements(path: Path, require_process: bool) -> Iterator[tuple[Place, VideoRecord | RecordProblem]]:
    with path.open("rb") as stream:
        offset = 0
        for number, line in enumerate(stream, start=1):
            if line.strip():
                item = parse_record(line, file=path, line=number, require_process=require_process)
                yield (number, offset, len(line)), item
            offset += len(line)


def _list_elements(path: Path, require_process: bool) -> Iterator[tuple[Place, VideoRecord | RecordProblem]]:
    """Decode a JSON list one element at a time, to learn where each of them stands; a syntax error ends it."""
    decoder, number, offset, previous = json.JSONDecoder(), 1, 0, 0
    try:
        text = path.read_bytes().decode("utf-8")
        start = _after_space(text, text.index("[") + 1)
        while not text.startswith("]", start):
            if number > 1:
                if not text.startswith(",", start):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, start)
                start = _after_space(text, start + 1)
            data, end = decoder.raw_decode(text, start)
            offset += len(text[previous:start].encode())
            size = len(text[start:end].encode())
            item = check_record(data, file=path, line=number, require_process=require_process)
            yield (number, offset, size), item
            number, offset, previous, start = number + 1, offset + size, end, _after_space(text, end)
        if _after_space(text, start + 1) < len(text):
            raise json.JSONDecodeError("Extra data", text, start + 1)
    except (ValueError, RecursionError) as error:
        message = f"not valid JSON in UTF-8: {error}. Correct it; the rest of the file was not read."
        yield (number, offset, 0), RecordProblem(file=path, line=number, problem_id=None, message=message)


def _after_space(text: str, position: int) -> int:
    return next(_SPACE.finditer(text, position)).end()  # matches at once, nothing if need be


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Data file {path} is not a file (looked from {Path.cwd()}).")
    return path


def _existing_folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"data_root {path} is not a folder (looked from {Path.cwd()}). "
            "It is the folder that the `path` of the records is relative to."
        )
    return path


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _checked_index(index: int, length: int) -> int:
    index = operator.index(index)
    if not -length <= index < length:
        raise IndexError(f"record {index} of {length}")
    return index % length
