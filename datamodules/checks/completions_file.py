"""Score a file of stored completions with the accuracy and format rewards, one row at a time."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rewards.accuracy import accuracy_reward
from rewards.format import format_reward
from rewards.suite import TOTAL
from rewards.types import ProblemType

REQUIRED_KEYS = ("problem_type", "completion", "solution")
BREAKDOWN_KEY = "rewards"
"""Where a row's breakdown stands; one from an earlier scoring is replaced."""


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
        width = max(map(len, ["problem type", *(kind.value for kind in self.counts)]))
        lines = [f"{self.count:,} completions", f"  {'problem type':<{width}}  {'rows':>8}" + _columns(names)]
        for kind, count in self.counts.items():
            scores = _columns([f"{self.means[kind][name]:.3f}" for name in names])
            lines.append(f"  {kind.value:<{width}}  {count:>8,}{scores}")
        return "\n".join(lines)


def score_completions_file(input: Path, output: Path) -> CompletionsSummary:
    """Write each row of a JSONL file with its breakdown added under "rewards": accuracy, format and total, their sum.

    The output appears complete or not at all; it may be the input file itself.

    Args:
        input: JSONL with "problem_type", "completion" and "solution" in every row; other fields are kept.
        output: JSONL to write or replace; missing folders are made.

    Raises:
        ValueError: the file has no rows, or a row is malformed, lacks a field, has an unknown problem type or a
            solution that cannot be graded; the message starts with file:line.
        FileNotFoundError: there is no input file.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            summary = _write_scored(_scored_rows(input), stream)
        if summary.count == 0:
            raise ValueError(f"{input} has no rows; write one JSON object per line with {', '.join(REQUIRED_KEYS)}.")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return summary


def _columns(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>10}" for cell in cells)


def _write_scored(rows: Iterator[dict[str, Any]], stream: TextIO) -> CompletionsSummary:
    counts: Counter[ProblemType] = Counter()
    sums: dict[ProblemType, Counter[str]] = {}
    for row in rows:
        stream.write(json.dumps(row) + "\n")
        problem_type = ProblemType(row["problem_type"])
        counts[problem_type] += 1
        sums.setdefault(problem_type, Counter()).update(row[BREAKDOWN_KEY])
    means = {kind: {name: value / counts[kind] for name, value in sums[kind].items()} for kind in counts}
    return CompletionsSummary(counts=dict(counts), means=means)


def _scored_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = _parsed_row(line)
                breakdown = _breakdown(row)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            yield {**row, BREAKDOWN_KEY: breakdown}


def _parsed_row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # Malformed JSON, or bytes that are not UTF-8.
        raise ValueError(f"the line is not JSON ({error}); write one JSON object per line.") from error
    if not isinstance(row, dict):
        raise ValueError(f"the line holds a JSON {type(row).__name__}; write one JSON object per line.")
    for key in REQUIRED_KEYS:
        if key not in row:
            raise ValueError(f"the field {key!r} is missing; the row has {', '.join(row) or 'no fields'}.")
        if not isinstance(row[key], str):
            raise ValueError(f"the field {key!r} is {row[key]!r}; it must be a string.")
    return row


def _breakdown(row: Mapping[str, Any]) -> dict[str, float]:
    scores = {
        "accuracy": accuracy_reward(ProblemType(row["problem_type"]), row["completion"], row["solution"]),
        "format": format_reward(row["completion"]),
    }
    return {**scores, TOTAL: sum(scores.values())}
