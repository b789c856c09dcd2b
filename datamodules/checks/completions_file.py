"""Score a file of stored completions with the accuracy and format rewards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.checks.reports import CompletionsReport
from datamodules.whole_files import write_whole
from rewards.accuracy import accuracy_reward
from rewards.errors import UserError
from rewards.format import format_reward
from rewards.suite import TOTAL
from rewards.types import ProblemType

REQUIRED_KEYS = ("problem_type", "completion", "solution")
SCORES_KEY = "rewards"
"""Field of the scores in a row; those of an earlier run are replaced."""


def score_completions_file(input: Path, output: Path) -> CompletionsReport:
    """Write the rows of a JSONL file, each with its scores under "rewards": accuracy, format and total, their sum.

    The output appears whole or not at all; it may be the input file itself.

    Args:
        input: JSONL with "problem_type", "completion" and "solution" in every row; other fields are kept.
        output: JSONL to write or replace; missing folders are made.

    Raises:
        UserError: the file has no rows, or a row is malformed, lacks a field, has an unknown problem type or a
            solution that cannot be graded; the message starts with file:line.
        FileNotFoundError: there is no input file.
    """
    rows = _scored_rows(input)
    if not rows:
        raise UserError(f"{input} has no rows; write one JSON object per line with {', '.join(REQUIRED_KEYS)}.")
    write_whole(output, "".join(json.dumps(row) + "\n" for row in rows))
    report = CompletionsReport()
    for row in rows:
        report.add(ProblemType(row["problem_type"]), row[SCORES_KEY])
    return report


def _scored_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = _parsed_row(line)
                rows.append({**row, SCORES_KEY: _scores(row)})
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}") from error
    return rows


def _parsed_row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # Malformed JSON, bytes that are not UTF-8, or thousands of levels.
        raise UserError(f"the line is not JSON ({error}); write one JSON object per line.") from error
    if not isinstance(row, dict):
        raise UserError(f"the line holds a JSON {type(row).__name__}; write one JSON object per line.")
    for key in REQUIRED_KEYS:
        if key not in row:
            raise UserError(f"the field {key!r} is missing; the row has {', '.join(row) or 'no fields'}.")
        if not isinstance(row[key], str):
            raise UserError(f"the field {key!r} is {row[key]!r}; it must be a string.")
    return row


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    scores = {
        "accuracy": accuracy_reward(ProblemType(row["problem_type"]), row["completion"], row["solution"]),
        "format": format_reward(row["completion"]),
    }
    return {**scores, TOTAL: sum(scores.values())}
