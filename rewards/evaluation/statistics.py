"""How sure is a benchmark number, and do two runs differ? Bootstrap intervals and paired tests over items.

Items that failed take no part, and the results say how many there were.
Resampling is over items: questions about one video are taken as independent, which makes intervals too narrow where a
benchmark asks many questions about few videos (TempCompass: 410 videos).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from rewards.errors import UserError
from rewards.evaluation.metrics import ScoredItem, aggregation_of, item_scores
from rewards.evaluation.scoring import BenchmarkScoring, ScoringRule

LEVEL = 0.95
"""Fraction of the resamples inside an interval."""
RESAMPLES, SEED = 1000, 0
"""Of every bootstrap: equal items give equal intervals."""
RESAMPLES_AT_ONCE = 100
"""Resamples whose item counts are in memory together: 0.8 MB per thousand items."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A percentile bootstrap interval, in the unit of the number it belongs to."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second run minus first run of one mean, in its unit."""

    value: float
    interval: Interval
    """From resampling items with the scores of both runs, so that what makes items hard for both cancels."""


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two runs on the same items."""

    items: int
    """Items that both runs answered; everything below is over these."""
    failed: int
    """Items left out because they failed in at least one run."""
    first_mean: float
    """Of item scores, in [0, 1]: what both scoring rules report for a choice benchmark, but not a mean of tasks."""
    second_mean: float
    difference: Difference
    """Of these two."""
    means: dict[str, Difference]
    """Of every mean of `aggregate`, a mean of tasks included."""
    only_first_right: int | None
    """Items that only the first run got right; None unless all scores are 0 or 1."""
    only_second_right: int | None
    p_value: float | None
    """Two-sided exact McNemar test; None unless all scores are 0 or 1."""


def bootstrap_intervals(
    scoring: BenchmarkScoring, rule: ScoringRule, items: Sequence[ScoredItem]
) -> dict[str, Interval]:
    """Percentile intervals of all means of `aggregate`, by their names and in their units.

    Each resample draws as many of the scored items as there are, with replacement, and aggregates them as a whole, so
    that a mean of tasks is resampled as such. A resample that draws no item of a mean does not count for it.

    Raises:
        UserError: as `aggregate`.
    """
    aggregation, scores = aggregation_of(scoring, rule, items), item_scores(items)
    scored = np.flatnonzero(~np.isnan(scores))
    if len(scored) == 0:
        return {}
    return _intervals(len(scored), lambda counts: aggregation.values(scores, _weights(counts, scored, len(scores))))


def compare_runs(
    scoring: BenchmarkScoring, rule: ScoringRule, first: Sequence[ScoredItem], second: Sequence[ScoredItem]
) -> PairedComparison:
    """Compare two runs on the same items, paired by `problem_id`; the order of the items does not matter.

    Raises:
        UserError: as `aggregate`; or the runs do not hold the same items, a `problem_id` twice in one of them, an item
            that belongs to different means, or no item that both answered.
    """
    first, second = _same_items(first, second)
    aggregation = aggregation_of(scoring, rule, first)
    if aggregation != aggregation_of(scoring, rule, second):
        raise UserError(
            f"The same {scoring.title} items differ between the runs in problem_type or in a category; evaluate both "
            "on the same file."
        )
    scores = np.stack([item_scores(first), item_scores(second)])  # [2, N]
    answered = np.flatnonzero(~np.isnan(scores).any(axis=0))
    if len(answered) == 0:
        raise UserError(f"None of the {len(first)} items was answered in both runs; there is nothing to compare.")
    before, after = scores[:, answered]

    def differences(counts: np.ndarray) -> dict[str, np.ndarray]:
        weights = _weights(counts, answered, len(first))
        of_first, of_second = (aggregation.values(run, weights) for run in scores)
        of_means = {name: of_second[name] - of_first[name] for name in aggregation.members}
        return {"": counts @ (after - before) / len(answered)} | of_means

    observed = differences(np.ones((1, len(answered))))
    means = {
        name: Difference(value=float(observed[name][0]), interval=interval)
        for name, interval in _intervals(len(answered), differences).items()
        if not np.isnan(observed[name][0])
    }
    binary = bool(np.isin(scores[:, answered], (0.0, 1.0)).all())
    only_first, only_second = int((before > after).sum()), int((after > before).sum())
    return PairedComparison(
        items=len(answered),
        failed=len(first) - len(answered),
        first_mean=float(before.mean()),
        second_mean=float(after.mean()),
        difference=means.pop(""),
        means=means,
        only_first_right=only_first if binary else None,
        only_second_right=only_second if binary else None,
        p_value=mcnemar_exact(only_first, only_second) if binary else None,
    )


def mcnemar_exact(only_first_right: int, only_second_right: int) -> float:
    """Two-sided exact McNemar test: the binomial probability of a split of the discordant items at least this uneven.

    p = min(1, 2 * sum over k <= min(b, c) of C(b + c, k) / 2^(b + c)); 1 without discordant items.
    """
    total = only_first_right + only_second_right
    tail = sum(comb(total, chosen) for chosen in range(min(only_first_right, only_second_right) + 1))
    return min(1.0, 2 * tail / 2**total)


def _intervals(items: int, means: Callable[[np.ndarray], dict[str, np.ndarray]]) -> dict[str, Interval]:
    """Intervals of the named means [R] that follow from how often each of the items is drawn, [R, items]."""
    generator = np.random.default_rng(SEED)
    chunks = [
        means(generator.multinomial(items, np.full(items, 1 / items), size=RESAMPLES_AT_ONCE).astype(np.float64))
        for _ in range(RESAMPLES // RESAMPLES_AT_ONCE)
    ]
    intervals = {}
    for name in chunks[0]:
        values = np.concatenate([chunk[name] for chunk in chunks])
        if not np.isnan(values).all():
            low, high = np.nanquantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
            intervals[name] = Interval(low=float(low), high=float(high))
    return intervals


def _weights(counts: np.ndarray, positions: np.ndarray, items: int) -> np.ndarray:
    """float64 [R, items]: the counts at the positions of the items that are drawn from, 0 elsewhere."""
    weights = np.zeros((len(counts), items))
    weights[:, positions] = counts
    return weights


def _same_items(first: Sequence[ScoredItem], second: Sequence[ScoredItem]) -> tuple[list[ScoredItem], list[ScoredItem]]:
    """Both runs' items in the order of `problem_id`."""
    ours, theirs = _by_id(first, "first"), _by_id(second, "second")
    if ours.keys() != theirs.keys():
        only_first, only_second = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
        raise UserError(
            f"The runs hold different items: {len(only_first)} only in the first ({len(first)} items), "
            f"{len(only_second)} only in the second ({len(second)} items), such as problem_id "
            f"{', '.join((only_first + only_second)[:3])}. Evaluate both on the same file."
        )
    return [ours[name] for name in sorted(ours)], [theirs[name] for name in sorted(ours)]


def _by_id(items: Sequence[ScoredItem], run: str) -> dict[str, ScoredItem]:
    by_id = {item.problem_id: item for item in items}
    if len(by_id) < len(items):
        raise UserError(f"The {run} run has {len(items) - len(by_id)} items whose problem_id occurred before.")
    return by_id
