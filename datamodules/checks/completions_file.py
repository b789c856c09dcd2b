"""Score a file of stored completions with the accuracy and format rewards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.text_table import text_table
from datamodules.whole_files import write_whole
from rewards.accuracy import accuracy_reward
from rewards.errors import UserError
from rewards.format import format_reward
from rewards.suite import TOTAL
from rewards.types import ProblemType

REQUIRED_KEYS = ("problem_type", "completion", "solution")
SCORES_KEY = "rewards"
"""Field of the scores in a row; those of an earlier run are replaced."""


@dataclass(frozen=True, kw_only=True)
class CompletionsSummary:
    """What `score_completions_file` found, per problem type that occurs in the file."""

    counts: Mapping[ProblemType, int]
    """Number of rows."""
    means: Mapping[ProblemType, Mapping[str, float]]
    """Means of "accuracy", "format" and "total" over the rows."""

    @property
    def count(self) -> int:
        """Number of rows in the file."""
        return sum(self.counts.values())

    def render(self) -> str:
        """Plain text: rows and means by problem type."""
        names = list(dict.fromkeys(name for scores in self.means.values() for name in scores))
        rows = [("problem type", "rows", *names)]
        for kind, count in self.counts.items():
            rows.append((kind.value, f"{count:,}", *(f"{self.means[kind][name]:.3f}" for name in names)))
        return "\n".join([f"{self.count:,} completions", *text_table(rows)])


def score_completions_file(input: Path, output: Path) -> CompletionsSummary:
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
    counts = Counter(ProblemType(row["problem_type"]) for row in rows)
    sums: dict[ProblemType, Counter[str]] = {kind: Counter() for kind in counts}
    for row in rows:
        sums[ProblemType(row["problem_type"])].update(row[SCORES_KEY])
    means = {kind: {name: total / counts[kind] for name, total in sums[kind].items()} for kind in counts}
    return CompletionsSummary(counts=counts, means=means)


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
