"""What stored rollouts say about their rewards: by problem type, against length, against each other, over the steps.

Read in bounded memory: the columns of numbers only, a thousand rows at a time; what grows is one tally per step and
one per different length.

Shapes: N completions, R rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.rollout_log.reward_pairs import RewardPairs
from lightning_modules.rollout_log.stored_files import StoredNumbers, parquet_files, read_numbers, stored_reward_names
from rewards.suite import TOTAL

LENGTH_BINS = 12
"""At most so many rows in the table of reward against length."""


@dataclass(kw_only=True)
class Tally:
    """Sums over completions of one kind."""

    count: int = 0
    tokens: int = 0
    truncated: int = 0
    scores: np.ndarray
    """float64 [R + 1]: sums of the total and of each reward's raw score."""
    scored: np.ndarray
    """int64 [R + 1]: how many completions have that score; files of a run with other rewards lack it."""
    groups: int = 0
    flat_groups: int = 0
    """Groups whose total rewards all agree: they have no policy gradient."""

    @classmethod
    def empty(cls, scores: int) -> Tally:
        return cls(scores=np.zeros(scores), scored=np.zeros(scores, dtype=np.int64))

    @property
    def mean_scores(self) -> list[float]:
        """R + 1 means, NaN where nothing was scored."""
        return [total / number if number else math.nan for total, number in zip(self.scores, self.scored, strict=True)]

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.count

    @property
    def truncated_share(self) -> float:
        return self.truncated / self.count

    @property
    def flat_share(self) -> float:
        return self.flat_groups / self.groups

    def add(self, tokens: np.ndarray, truncated: np.ndarray, scores: np.ndarray) -> None:
        """Count N completions; scores [N, R + 1]."""
        self.count += len(tokens)
        self.tokens += int(tokens.sum())
        self.truncated += int(truncated.sum())
        self.scores += np.nansum(scores, axis=0)
        self.scored += np.isfinite(scores).sum(axis=0)

    def merge(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True, kw_only=True)
class RolloutSummary:
    """What `summarize_rollouts` found."""

    files: int
    """How many were read."""
    names: tuple[str, ...]
    """R names of rewards."""
    types: Mapping[str, Tally]
    """By problem type."""
    lengths: Mapping[int, Tally]
    """By completion tokens; groups are not counted here."""
    steps: Mapping[int, Tally]
    """By optimizer step; groups are not counted here."""
    correlation: np.ndarray
    """[R, R]: Pearson correlation of raw scores over the completions; NaN where a reward does not vary."""
    disagreement: np.ndarray
    """[R, R]: share of completions that reward i finds good and reward j bad: above and below the middle of the range
    of raw scores that the reward took in these files; a reward that is not for a problem type scores 0 there. NaN where
    a reward does not vary."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """What the R + 1 means of a tally are of."""
        return (TOTAL, *self.names)

    @property
    def total(self) -> Tally:
        total = Tally.empty(len(self.score_names))
        for tally in self.types.values():
            total.merge(tally)
        return total

    def length_bins(self) -> list[tuple[int, int, Tally]]:
        """(first length, last length, tally) of bins of equal, round width; bins without completions are left out."""
        width = _round_width(max(self.lengths))
        bins: dict[int, Tally] = {}
        for length, tally in sorted(self.lengths.items()):
            # Lengths start at 1, so the first bin is 1 to width.
            bins.setdefault((length - 1) // width, Tally.empty(len(self.score_names))).merge(tally)
        return [(place * width + 1, (place + 1) * width, tally) for place, tally in bins.items()]

    def render(self) -> str:
        """Plain text: by problem type, reward against length, disagreement and correlation of rewards."""
        total, steps = self.total, f"steps {min(self.steps):,} to {max(self.steps):,}"
        lines = [
            f"{total.count:,} completions in {total.groups:,} groups, {steps}, {self.files:,} files",
            "",
            f"by problem type ({TOTAL}: what advantages compare; then each reward's raw score)",
            *_table(self._type_rows()),
            "",
            "by length in tokens",
            *_table(self._length_rows()),
        ]
        if len(self.names) > 1:
            lines += ["", "disagreement: share of completions that the row's reward finds good and the column's bad"]
            lines += _table(_matrix(self.names, self.disagreement, _share))
            lines += ["", "correlation of raw scores"]
            lines += _table(_matrix(self.names, self.correlation, _correlation))
        return "\n".join(lines)

    def _type_rows(self) -> list[tuple[str, ...]]:
        tallies = sorted(self.types.items())
        if len(tallies) > 1:
            tallies.append(("all", self.total))
        rows = [("problem type", "completions", "groups", "no variance", "truncated", "tokens", *self.score_names)]
        for name, tally in tallies:
            shares = (_share(tally.flat_share), _share(tally.truncated_share))
            counts = (f"{tally.count:,}", f"{tally.groups:,}")
            rows.append((name, *counts, *shares, f"{tally.mean_tokens:.1f}", *_means(tally)))
        return rows

    def _length_rows(self) -> list[tuple[str, ...]]:
        rows = [("tokens", "completions", "truncated", *self.score_names)]
        for low, high, tally in self.length_bins():
            lengths = f"{low:,}-{high:,}" if high > low else f"{low:,}"
            rows.append((lengths, f"{tally.count:,}", _share(tally.truncated_share), *_means(tally)))
        return rows


def summarize_rollouts(folder: Path) -> RolloutSummary:
    """Read all `*.parquet` files of a folder that `RolloutStore` wrote.

    Raises:
        ValueError: there is no such folder, it holds no Parquet file or no rows, or a file is not a RolloutStore's.
    """
    paths = parquet_files(folder)
    names = stored_reward_names(paths)
    pairs = RewardPairs(*_ranges(paths, names))
    types: dict[str, Tally] = {}
    lengths: dict[int, Tally] = {}
    steps: dict[int, Tally] = {}
    for path in paths:
        for part in read_numbers(path, names):
            for tallies, keys in ((types, part.problem_type), (lengths, part.tokens), (steps, part.step)):
                _count(tallies, keys, part)
            _count_groups(types, part)
            pairs.add(part.scores[:, 1:])
    if not types:
        raise ValueError(f"The Parquet files in {folder} hold no rows; was the run stopped before its first step?")
    return RolloutSummary(
        files=len(paths),
        names=names,
        types=types,
        lengths=lengths,
        steps=steps,
        correlation=pairs.correlation(),
        disagreement=pairs.disagreement(),
    )


def _ranges(paths: Sequence[Path], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest raw score of each reward, [R] each."""
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for path in paths:
        for part in read_numbers(path, names):
            # fmin and fmax leave NaN, an absent score, out.
            low = np.fmin(low, np.fmin.reduce(part.scores[:, 1:], axis=0))
            high = np.fmax(high, np.fmax.reduce(part.scores[:, 1:], axis=0))
    return low, high


def _count(tallies: dict[Any, Tally], keys: np.ndarray, part: StoredNumbers) -> None:
    """Add every completion to the tally of its key; keys [N]."""
    for key in np.unique(keys):
        chosen = keys == key
        tally = tallies.setdefault(key.item(), Tally.empty(part.scores.shape[1]))
        tally.add(part.tokens[chosen], part.truncated[chosen], part.scores[chosen])


def _count_groups(types: Mapping[str, Tally], part: StoredNumbers) -> None:
    totals = part.scores[:, 0]
    flat = np.minimum.reduceat(totals, part.group_starts) == np.maximum.reduceat(totals, part.group_starts)
    kinds = part.problem_type[part.group_starts]
    for kind in np.unique(kinds):
        types[kind.item()].groups += int((kinds == kind).sum())
        types[kind.item()].flat_groups += int(flat[kinds == kind].sum())


def _round_width(longest: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that covers 1 to `longest` in at most `LENGTH_BINS` bins."""
    widths = (digit * 10**power for power in count() for digit in (1, 2, 5))
    return next(width for width in widths if width * LENGTH_BINS >= longest)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _correlation(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _means(tally: Tally) -> list[str]:
    return ["-" if math.isnan(mean) else f"{mean:.3f}" for mean in tally.mean_scores]


def _matrix(names: Sequence[str], values: np.ndarray, shown: Callable[[float], str]) -> list[tuple[str, ...]]:
    """Header and R rows; the diagonal says nothing."""
    rows = [
        (name, *("" if row == column else shown(values[row, column]) for column in range(len(names))))
        for row, name in enumerate(names)
    ]
    return [("", *names), *rows]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Indented columns, the first to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
