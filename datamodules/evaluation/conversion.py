"""A benchmark's own annotation files to one data file of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from datamodules.atomic_file import write_atomically
from datamodules.evaluation.converters import (
    TempCompassTask,
    VideoMMMUTrack,
    convert_mmvu,
    convert_mvbench,
    convert_tempcompass,
    convert_videomme,
    convert_videommmu,
    convert_vsibench,
)
from datamodules.evaluation.layouts import MVBENCH_TASKS

Records = Iterator[dict[str, Any]]
SUFFIXES = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Converter:
    """How one benchmark's files become records."""

    convert: Callable[..., Records]
    """(content of a file, its part if there are parts, **options) -> records."""
    parts: tuple[str, ...] = ()
    """Tasks or tracks, where the authors publish a file for each and the file does not name it."""


CONVERTERS: dict[str, Converter] = {
    "vsibench": Converter(convert=convert_vsibench),
    "videommmu": Converter(convert=convert_videommmu, parts=get_args(VideoMMMUTrack)),
    "mmvu": Converter(convert=convert_mmvu),
    "mvbench": Converter(convert=convert_mvbench, parts=tuple(MVBENCH_TASKS)),
    "tempcompass": Converter(convert=convert_tempcompass, parts=get_args(TempCompassTask)),
    "videomme": Converter(convert=convert_videomme),
}


def convert_files(name: str, files: Sequence[str], output: Path, options: Mapping[str, Any] | None = None) -> int:
    """Write the records of annotation files, in the order given, as a JSON list that appears whole or not at all.

    Args:
        name: a key of `CONVERTERS`.
        files: paths of .json, .jsonl or .parquet files; PART=PATH for a benchmark with parts.
        output: the data file.
        options: of the benchmark's converter, such as `folder`.

    Returns:
        Number of records.

    Raises:
        ValueError: unknown benchmark or part, a file that cannot be read, a row that is none of the benchmark's, or
            one question twice.
    """
    if name not in CONVERTERS:
        raise ValueError(f"{name!r} is no benchmark; choose one of {', '.join(CONVERTERS)}.")
    records: dict[str, dict[str, Any]] = {}
    for given in files:
        for record in _records(CONVERTERS[name], name, given, dict(options or {})):
            problem_id = record["problem_id"]
            if problem_id in records:
                raise ValueError(f"{given}: question {problem_id!r} was there before. Give each file once.")
            records[problem_id] = record
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(list(records.values()), indent=1, ensure_ascii=False) + "\n")
    return len(records)


def _records(converter: Converter, name: str, given: str, options: dict[str, Any]) -> Records:
    part, path = "", given
    if converter.parts:
        part, _, path = given.partition("=")
        if part not in converter.parts or not path:
            raise ValueError(
                f"{given!r}: the files of {name} do not say what they hold. Write PART=FILE, with one of these parts: "
                f"{', '.join(converter.parts)}."
            )
    content = _content(Path(path))
    try:
        yield from converter.convert(content, *([part] if converter.parts else []), **options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _content(path: Path) -> Any:
    """What an annotation file holds: rows, or for one benchmark a mapping."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}; give the benchmark's own annotation files.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist (looked from {Path.cwd()}).")
    if path.suffix == ".parquet":
        from pyarrow import ArrowInvalid, parquet

        try:
            return parquet.read_table(path).to_pylist()
        except ArrowInvalid as error:
            raise ValueError(f"{path} is no Parquet file: {error}") from error
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
