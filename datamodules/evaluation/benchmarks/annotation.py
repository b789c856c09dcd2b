"""From the files of an authors' annotation to one data file of records, and what the benchmarks' converters share.

Options get letters, answers become `<answer>...</answer>`. Fields that scores are broken down by, and those that only
the authors' own scorer reads, are kept under their own names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record, Row
from datamodules.whole_files import write_whole
from rewards.answer_format import wrap_answer
from rewards.errors import UserError
from rewards.options import split_option
from rewards.types import ProblemType


def checked_rows(benchmark: str, rows: Iterable[Row], needed: str) -> Iterator[Row]:
    """The rows; a UserError for one that lacks a field of `needed`, which are separated by spaces."""
    for number, row in enumerate(rows):
        missing = [name for name in needed.split() if row.get(name) is None]
        if missing:
            raise UserError(
                f"{benchmark}, row {number}: {', '.join(missing)} missing; given are {', '.join(row)}. "
                "Convert the benchmark's own annotation file."
            )
        yield row


def video_record(*, problem_type: ProblemType, options: list[str], answer: str, **fields: Any) -> Record:
    """A record about a video; a UserError if it is multiple choice and the answer is the letter of no option."""
    letters = [option[0] for option in options]
    if problem_type is ProblemType.MULTIPLE_CHOICE and answer not in letters:
        raise UserError(f"Question {fields['problem_id']}: answer {answer!r} is the letter of none of {options}.")
    record = {"data_type": "video", "problem_type": str(problem_type), "options": options}
    return {**fields, **record, "solution": wrap_answer(answer)}


def lettered(options: Iterable[str] | None) -> list[str]:
    """Options as "A. text"; letters that they carry already are kept where they are A, B, C and so on."""
    # Parquet gives options as an array, whose truth value is not defined.
    texts = [] if options is None else [str(option).strip() for option in options]
    parts = [split_option(text) for text in texts]
    if all(part and part.letter == letter for part, letter in zip(parts, ascii_uppercase, strict=False)):
        texts = [part.text for part in parts if part]
    return [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]


SUFFIXES = (".json", ".jsonl", ".parquet")


def convert_files(benchmark: Benchmark, files: Sequence[str], output: Path, **options: str | bool) -> int:
    """Write the records of annotation files as a JSON list that appears whole or not at all; returns their number.

    Args:
        benchmark: whose files they are.
        files: paths of .json, .jsonl or .parquet files; PART=PATH for a benchmark with parts.
        output: the data file.
        options: of the benchmark's converter, such as `folder`.

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
