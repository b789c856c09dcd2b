"""What the benchmarks' converters have in common: from a row of an authors' annotation to a record.

Options get letters, answers become `<answer>...</answer>`. Fields that scores are broken down by, and those that only
the authors' own scorer reads, are kept under their own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import ascii_uppercase
from typing import Any

from datamodules.evaluation.benchmarks.benchmark import Record, Row
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
