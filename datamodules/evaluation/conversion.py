"""A benchmark's own annotation files to one data file of records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record
from datamodules.whole_files import write_whole
from rewards.errors import UserError

SUFFIXES = (".json", ".jsonl", ".parquet")


def convert_files(benchmark: Benchmark, files: Sequence[str], output: Path, **options: str | bool) -> int:
    """Write the records of annotation files, in the order given, as a JSON list that appears whole or not at all.

    Args:
        benchmark: whose files they are.
        files: paths of .json, .jsonl or .parquet files; PART=PATH for a benchmark with parts.
        output: the data file.
        options: of the benchmark's converter, such as `folder`.

    Returns:
        Number of records.

    Raises:
        UserError: an unknown part, a file that cannot be read, a row that is none of the benchmark's, or one question
            twice.
    """
    records: dict[str, Record] = {}
    for given in files:
        for record in _records(benchmark, given, options):
            problem_id = record["problem_id"]
            if problem_id in records:
                raise UserError(f"{given}: question {problem_id!r} was there before. Give each file once.")
            records[problem_id] = record
    write_whole(output, json.dumps(list(records.values()), indent=1, ensure_ascii=False) + "\n")
    return len(records)


def _records(benchmark: Benchmark, given: str, options: dict[str, str | bool]) -> Iterator[Record]:
    part, path = "", given
    if benchmark.parts:
        part, _, path = given.partition("=")
        if part not in benchmark.parts or not path:
            raise UserError(
                f"{given!r}: the files of {benchmark.name} do not say what they hold. Write PART=FILE, with one of "
                f"these parts: {', '.join(benchmark.parts)}."
            )
    content = _content(Path(path))
    try:
        yield from benchmark.convert(content, *([part] if part else []), **options)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _content(path: Path) -> Any:
    """What an annotation file holds: rows, or for one benchmark a mapping."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}; give the benchmark's own annotation files.")
    if not path.is_file():
        raise UserError(f"{path} does not exist (looked from {Path.cwd()}).")
    if path.suffix == ".parquet":
        from pyarrow import ArrowInvalid, parquet

        try:
            return parquet.read_table(path).to_pylist()
        except ArrowInvalid as error:
            raise UserError(f"{path} is no Parquet file: {error}") from error
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
