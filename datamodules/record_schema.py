"""What a record of a data file must look like: one JSON object in, a `VideoRecord` or the reason why it is none out.

`problem_id` int or str; `problem`; `data_type` video, image or text; `problem_type`; `solution` with answer tags;
`path` relative to the data root (video, image). Optional: `options` (list of strings), `process` with think tags,
`data_source`. Fields besides these are kept in `VideoRecord.extra`.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args

from datamodules.types import VideoRecord
from datamodules.video.types import printable
from rewards.answer_format import parse_response, wrap_answer, wrap_think
from rewards.errors import UserError
from rewards.types import DataType, ProblemType

_KNOWN_FIELDS = frozenset(item.name for item in fields(VideoRecord)) - {"extra", "file", "line"}
_OPTIONAL_FIELDS = ("options", "process", "path", "data_source", "start", "end")
_OTHER_NAMES = {
    **dict.fromkeys(("choices", "candidates", "alternatives", "answers"), "options"),
    **dict.fromkeys(("video", "image", "video_path", "image_path", "media", "file", "file_name"), "path"),
    **dict.fromkeys(("chain_of_thought", "cot", "reasoning", "thinking"), "process"),
    **dict.fromkeys(("start_time", "begin"), "start"),
    **dict.fromkeys(("end_time", "stop"), "end"),
}
"""What other data sets call the optional fields; names like the right ones need no entry."""
_SIMILAR = 0.8
_DATA_TYPES = get_args(DataType)
_PROBLEM_TYPES = tuple(item.value for item in ProblemType)
_BYTE_ORDER_MARK = "\ufeff"
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_DEPTH = 32
"""Levels of lists and objects within a record."""


@dataclass(frozen=True, kw_only=True)
class RecordProblem:
    """A place of a data file that is not a valid record, and why."""

    file: Path
    line: int
    """Line (JSONL, from 1) or element (JSON list, from 1)."""
    problem_id: str | None
    """None where it could not be read."""
    message: str
    """What was given, what is allowed, how to fix it."""

    @property
    def where(self) -> str:
        """`file:line (problem_id ...)`, as `VideoRecord.where`."""
        name = "unknown" if self.problem_id is None else self.problem_id
        return printable(f"{self.file}:{self.line} (problem_id {name})")

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def parse_record(raw: bytes, *, file: Path, line: int, require_process: bool) -> VideoRecord | RecordProblem:
    """Validate the JSON text of one record, UTF-8; the other arguments as `check_record`."""
    try:
        data = json.loads(raw.decode("utf-8").removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        message = f"not valid JSON in UTF-8: {error}. Write one record per line, or one JSON list of records."
        return RecordProblem(file=file, line=line, problem_id=None, message=message)
    return check_record(data, file=file, line=line, require_process=require_process)


def check_record(data: Any, *, file: Path, line: int, require_process: bool) -> VideoRecord | RecordProblem:
    """Validate one element of a data file.

    Args:
        data: what JSON gave for it.
        file: where it comes from, for messages.
        line: line or element number within the file.
        require_process: a missing or untagged chain of thought is a problem.
    """
    problem_id = None
    try:
        if not isinstance(data, dict):
            raise UserError(f"a record is an object {{...}}; given {type(data).__name__}: {str(data)[:60]!r}.")
        problem_id = _problem_id(data)
        _check_plain(data, "the record", 0)
        _check_names(data)
        return VideoRecord(problem_id=problem_id, file=file, line=line, **_validated_fields(data, require_process))
    except ValueError as error:
        return RecordProblem(file=file, line=line, problem_id=problem_id, message=str(error))


def doubt(record: VideoRecord) -> str | None:
    """What looks like a mistake in a valid record, though it may be meant; None where nothing does."""
    given = {*record.extra, *(name for name in _OPTIONAL_FIELDS if getattr(record, name, None))}
    for name in record.extra:
        meant = _meant(name)
        if meant is not None and meant not in given:
            return f"field {name!r} is not read, and there is no {meant!r}; rename it if that is what it holds"
    if record.problem_type is ProblemType.MULTIPLE_CHOICE and not record.options:
        return "multiple choice without options: the prompt shows none, unless they stand in the question"
    return None


def _check_names(data: Mapping[str, Any]) -> None:
    """Refuse a field under another name where the record would silently become another question without it."""
    for name, value in data.items():
        if name in _KNOWN_FIELDS or not value:
            continue
        meant = _meant(name)
        asks_blindly = meant == "options" and data.get("problem_type") == ProblemType.MULTIPLE_CHOICE
        becomes_text = meant == "path" and "data_type" not in data and isinstance(value, str)
        if meant is not None and (asks_blindly or becomes_text) and not data.get(meant):
            raise UserError(
                f"there is a field {name!r} and no {meant!r}, without which this would become another question. "
                f"Rename it to {meant!r}."
            )


@cache
def _meant(name: str) -> str | None:
    """The optional field that an unknown one may stand for."""
    lowered = name.lower()
    if name in _KNOWN_FIELDS or name in _OPTIONAL_FIELDS:
        return None
    if lowered in _OTHER_NAMES:
        return _OTHER_NAMES[lowered]
    similar = difflib.get_close_matches(lowered, _OPTIONAL_FIELDS, 1, _SIMILAR)
    return similar[0] if similar else None


def _problem_id(data: Mapping[str, Any]) -> str:
    value = data.get("problem_id")
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"problem_id is {_given(data, 'problem_id')}; it must be an integer or a non-empty string.")
    return str(value)


def _validated_fields(data: Mapping[str, Any], require_process: bool) -> dict[str, Any]:
    """The keyword arguments of VideoRecord besides its id and place."""
    media = _optional_text(data, "path")
    data_type = data.get("data_type", None if media else "text")
    _check_choice(data, "data_type", data_type, _DATA_TYPES)
    _check_choice(data, "problem_type", data.get("problem_type"), _PROBLEM_TYPES)
    return {
        "problem": _text(data, "problem"),
        "data_type": data_type,
        "problem_type": ProblemType(data["problem_type"]),
        "solution": _solution(data),
        "process": _process(data, require_process),
        "options": _options(data),
        "path": _media(media, data_type),
        "data_source": _optional_text(data, "data_source"),
        "extra": {name: value for name, value in data.items() if name not in _KNOWN_FIELDS},
    }


def _check_plain(value: Any, name: str, depth: int) -> None:
    """Refuse what JSON cannot carry back, or what tokenizers and logs stumble over much later."""
    if depth > MAX_DEPTH:
        raise UserError(f"{name} is nested more than {MAX_DEPTH} levels deep. Flatten the field or remove it.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"the name {key!r}", depth)
            _check_plain(item, key if depth == 0 else f"{name}.{key}", depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_plain(item, f"{name}[{number}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}, which JSON cannot hold. Write null or a number.")
    elif isinstance(value, str) and (half := _HALF_SURROGATE.search(value)):
        raise UserError(
            f"{name} holds {half[0]!r}, half of a character, which no text file can hold. Correct its encoding."
        )


def _given(data: Mapping[str, Any], name: str) -> str:
    return repr(data[name])[:80] if name in data else "missing"


def _check_choice(data: Mapping[str, Any], name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise UserError(f"{name} is {_given(data, name)}; allowed: {choices}. Correct the field.")


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} is {_given(data, name)}; it must be a non-empty string.")
    return value


def _optional_text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} is {_given(data, name)}; it must be a string, null or absent.")
    return value or None


def _solution(data: Mapping[str, Any]) -> str:
    solution = _text(data, "solution")
    if not parse_response(solution).answer:
        raise UserError(
            f"solution is {_given(data, 'solution')}; it must hold the answer as {wrap_answer('...')!r}: "
            "without the tags no completion could ever be right."
        )
    return solution


def _process(data: Mapping[str, Any], required: bool) -> str | None:
    process = _optional_text(data, "process")
    if required and (process is None or not parse_response(process).think):
        raise UserError(
            f"process is {_given(data, 'process')}; supervised fine-tuning needs {wrap_think('...')!r}. "
            "Use a file with chains of thought, or leave the record out."
        )
    return process


def _options(data: Mapping[str, Any]) -> tuple[str, ...]:
    options = data.get("options")
    if options is None:
        return ()
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise UserError(
            f"options is {_given(data, 'options')}; it must be a list of non-empty strings such as 'A. red', "
            "an empty list, null or absent."
        )
    return tuple(options)


def _media(path: str | None, data_type: str) -> str | None:
    """Check the path as text only: opening a file must not ask the disk about every media file."""
    if (path is None) != (data_type == "text"):
        raise UserError(
            f"path is {path!r} with data_type {data_type!r}; a video or an image needs a path, a text record has none."
        )
    if path is None:
        return None
    outside = f"{os.path.normpath(path)}/".startswith("../")
    absolute = path.startswith(("/", "\\")) or path[1:2] == ":"
    if outside or absolute or "\0" in path:
        raise UserError(
            f"path is {path!r}; it must be relative to the data root and stay inside it ('./folder/clip.mp4'). "
            "Set data_root to the folder that holds the media and make the path relative to it."
        )
    return path
