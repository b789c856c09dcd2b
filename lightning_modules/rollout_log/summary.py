"""What stored rollouts say about their rewards: by problem type, against length, against each other, over the steps.

Shapes: N completions, R rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import numpy as np

from datamodules.text_table import text_table
from lightning_modules.rollout_log.stored_rows import Means, StoredNumbers, read_numbers
from rewards.suite import TOTAL

LENGTH_BINS = 12
"""The table of reward against length has at most this many rows."""
CURVE_POINTS = 200
"""Longer runs are averaged over neighboring steps."""


@dataclass(frozen=True, kw_only=True)
class RolloutSummary:
    """What `summarize_rollouts` found."""

    files: int
    """How many were read."""
    names: tuple[str, ...]
    """R names of rewards."""
    total: Means
    types: Mapping[str, Means]
    """By problem type, sorted."""
    lengths: Sequence[tuple[int, int, Means]]
    """(first, last, means) of bins of completion tokens, of equal, round width; empty bins are left out."""
    steps: Sequence[tuple[float, Means]]
    """(mean step, means) of at most `CURVE_POINTS` runs of consecutive optimizer steps."""
    first_step: int
    last_step: int
    correlation: np.ndarray
    """[R, R]: Pearson correlation of raw scores over the completions that have both; NaN where a reward does not
    vary."""
    disagreement: np.ndarray
    """[R, R]: fraction of completions that reward i finds good and reward j bad: above and below the middle of the
    range of raw scores that the reward took in these files; a reward that is not for a problem type scores 0 there. NaN
    where a reward does not vary."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """What the R + 1 `scores` of `Means` are of."""
        return (TOTAL, *self.names)

    def render(self) -> str:
        """Plain text: by problem type, reward against length, disagreement and correlation of rewards."""
        total = self.total
        lines = [
            f"{total.count:,} completions in {total.groups:,} groups, steps {self.first_step:,} to "
            f"{self.last_step:,}, {self.files:,} files",
            "",
            f"by problem type ({TOTAL}: what advantages compare; then each reward's raw score)",
            *text_table(self._type_rows()),
            "",
            "by length in tokens",
            *text_table(self._length_rows()),
        ]
        if len(self.names) > 1:
            lines += ["", "disagreement: completions that the row's reward finds good and the column's bad"]
            lines += text_table(_matrix(self.names, self.disagreement, "{:.1%}".format))
            lines += ["", "correlation of raw scores"]
            lines += text_table(_matrix(self.names, self.correlation, "{:+.2f}".format))
        return "\n".join(lines)

    def _type_rows(self) -> list[tuple[str, ...]]:
        means = {**self.types, "all": self.total} if len(self.types) > 1 else self.types
        rows = [("problem type", "completions", "groups", "no variance", "truncated", "tokens", *self.score_names)]
        for name, kind in means.items():
            counts = (f"{kind.count:,}", f"{kind.groups:,}", f"{kind.flat:.1%}", f"{kind.truncated:.1%}")
            rows.append((name, *counts, f"{kind.tokens:.1f}", *_scores(kind)))
        return rows

    def _length_rows(self) -> list[tuple[str, ...]]:
        rows = [("tokens", "completions", "truncated", *self.score_names)]
        for low, high, means in self.lengths:
            lengths = f"{low:,}-{high:,}" if high > low else f"{low:,}"
            rows.append((lengths, f"{means.count:,}", f"{means.truncated:.1%}", *_scores(means)))
        return rows


def summarize_rollouts(folder: Path) -> RolloutSummary:
    """Sum up a folder that `RolloutStore` wrote; errors as `read_numbers`."""
    numbers = read_numbers(folder)
    width = _round_width(numbers.tokens.max())
    # Lengths start at 1, so the first bin is 1 to width.
    bins = numbers.means((numbers.tokens - 1) // width)
    correlation, disagreement = _agreement(numbers.scores[:, 1:])
    return RolloutSummary(
        files=numbers.files,
        names=numbers.names,
        total=numbers.means(np.zeros_like(numbers.step))[0],
        types=numbers.means(numbers.problem_type),
        lengths=[(place * width + 1, (place + 1) * width, means) for place, means in bins.items()],
        steps=_over_steps(numbers),
        first_step=int(numbers.step.min()),
        last_step=int(numbers.step.max()),
        correlation=correlation,
        disagreement=disagreement,
    )


def _over_steps(numbers: StoredNumbers) -> list[tuple[float, Means]]:
    steps, places = np.unique(numbers.step, return_inverse=True)
    size = math.ceil(len(steps) / CURVE_POINTS)
    means = numbers.means(places // size)
    return [(float(steps[run * size : (run + 1) * size].mean()), means[run]) for run in means]


def _agreement(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation and disagreement [R, R] of raw scores [N, R], each pair over the completions that have both."""
    low, high = np.nanmin(raw, axis=0), np.nanmax(raw, axis=0)
    middle = (low + high) / 2
    correlation, disagreement = np.full((2, len(low), len(low)), np.nan)
    for i, j in product(np.flatnonzero(high > low), repeat=2):
        first, second = raw[np.isfinite(raw[:, i]) & np.isfinite(raw[:, j])][:, [i, j]].T
        if len(first):
            disagreement[i, j] = ((first > middle[i]) & (second < middle[j])).mean()
        if len(first) and np.ptp(first) and np.ptp(second):
            correlation[i, j] = np.corrcoef(first, second)[0, 1]
    return correlation, disagreement


def _round_width(longest: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that covers 1 to `longest` in at most `LENGTH_BINS` bins."""
    widths = (digit * 10**power for power in count() for digit in (1, 2, 5))
    return next(width for width in widths if width * LENGTH_BINS >= longest)


def _scores(means: Means) -> list[str]:
    return ["-" if math.isnan(score) else f"{score:.3f}" for score in means.scores]


def _matrix(names: Sequence[str], values: np.ndarray, shown: Callable[[float], str]) -> list[tuple[str, ...]]:
    """Header and R rows; the diagonal says nothing."""
    cells = [["-" if math.isnan(value) else shown(value) for value in row] for row in values]
    for place, row in enumerate(cells):
        row[place] = ""
    return [("", *names), *((name, *row) for name, row in zip(names, cells, strict=True))]
