"""How sure is a benchmark number, and do two runs differ? Bootstrap intervals and paired tests over items.

Items that failed take no part, and the results say how many there were.
Resampling is over items: questions about one video are taken as independent, which makes intervals too narrow where a
benchmark asks many questions about few videos (TempCompass: 410 videos).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.errors import UserError
from rewards.evaluation.metrics import ScoredItem, aggregation_of, item_scores
from rewards.evaluation.scoring import BenchmarkScoring, ScoringRule

LEVEL = 0.95
"""Fraction of the resamples inside an interval."""
RESAMPLES_AT_ONCE = 100
"""Resamples whose item counts are in memory together: 0.8 MB per thousand items."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A percentile bootstrap interval, in the unit of the number it belongs to."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two runs on the same items. Means and differences are of item scores, in [0, 1] and [-1, 1]."""

    items: int
    """Items that both runs answered; everything below is over these."""
    failed: int
    """Items left out because they failed in at least one run."""
    first_mean: float
    second_mean: float
    difference: float
    """second_mean - first_mean."""
    interval: Interval
    """Of the difference, from resampling items with both of their scores."""
    only_first_right: int | None
    """Items that only the first run got right; None unless all scores are 0 or 1."""
    only_second_right: int | None
    p_value: float | None
    """Two-sided exact McNemar test; None unless all scores are 0 or 1."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second run minus first run of one mean of `aggregate`, in its unit."""

    value: float
    interval: Interval


def bootstrap_intervals(
    scoring: BenchmarkScoring,
    rule: ScoringRule,
    items: Sequence[ScoredItem],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of all means of `aggregate`, by their names and in their units.

    Each resample draws as many of the scored items as there are, with replacement, and aggregates them as a whole, so
    that a mean of tasks is resampled as such. A resample that draws no item of a mean does not count for it.

    Args:
        resamples: number of resamples.
        seed: of the generator; the same items in the same order give the same intervals.

    Raises:
        UserError: as `aggregate`.
    """
    aggregation = aggregation_of(scoring, rule, items)
    scores = item_scores(items)
    scored = np.flatnonzero(~np.isnan(scores))
    if len(scored) == 0:
        return {}
    chunks = []
    for counts in _resampled_counts(len(scored), resamples, seed):
        weights = np.zeros((len(counts), len(scores)))  # [R, N]
        weights[:, scored] = counts
        chunks.append(aggregation.values(scores, weights))
    drawn = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in aggregation.members}
    return {name: _interval(values) for name, values in drawn.items() if not np.isnan(values).all()}


def compare_runs(
    first: Sequence[ScoredItem],
    second: Sequence[ScoredItem],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two runs on the same items, paired by `problem_id`; the order of the items does not matter.

    The mean of item scores is what both scoring rules report for a choice benchmark. It is not the mean of a
    benchmark's `task_means`: for that and for breakdowns see `bootstrap_differences`.

    Raises:
        UserError: the runs do not hold the same items, a `problem_id` twice in one of them, or no item that both
            answered.
    """
    first, second = _same_items(first, second)
    answered = np.stack([item_scores(first), item_scores(second)], axis=1)[
        _answered_in_both(first, second)
    ]  # [items, 2]
    differences = answered[:, 1] - answered[:, 0]
    means = [counts @ differences / len(differences) for counts in _resampled_counts(len(answered), resamples, seed)]
    binary = bool(np.isin(answered, (0.0, 1.0)).all())
    only_first = int((differences < 0).sum()) if binary else None
    only_second = int((differences > 0).sum()) if binary else None
    return PairedComparison(
        items=len(answered),
        failed=len(first) - len(answered),
        first_mean=float(answered[:, 0].mean()),
        second_mean=float(answered[:, 1].mean()),
        difference=float(differences.mean()),
        interval=_interval(np.concatenate(means)),
        only_first_right=only_first,
        only_second_right=only_second,
        p_value=mcnemar_exact(only_first, only_second) if only_first is not None and only_second is not None else None,
    )


def bootstrap_differences(
    scoring: BenchmarkScoring,
    rule: ScoringRule,
    first: Sequence[ScoredItem],
    second: Sequence[ScoredItem],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Paired bootstrap of every mean of `aggregate`, a mean of tasks included, over the items that both runs answered.

    Each resample draws the same items in both runs, so what makes items hard for both cancels.

    Raises:
        UserError: as `compare_runs` and `aggregate`, or an item that belongs to different means in the two runs.
    """
    first, second = _same_items(first, second)
    aggregation = aggregation_of(scoring, rule, first)
    if aggregation != aggregation_of(scoring, rule, second):
        raise UserError(
            f"The same {scoring.title} items differ between the runs in problem_type or in a category; evaluate both "
            "on the same file."
        )
    answered = _answered_in_both(first, second)
    scores = item_scores(first), item_scores(second)

    def differences(counts: np.ndarray) -> dict[str, np.ndarray]:
        weights = np.zeros((len(counts), len(first)))  # [R, N]
        weights[:, answered] = counts
        before, after = (aggregation.values(run, weights) for run in scores)
        return {name: after[name] - before[name] for name in aggregation.members}

    observed = differences(np.ones((1, len(answered))))
    drawn = [differences(counts) for counts in _resampled_counts(len(answered), resamples, seed)]
    result = {}
    for name, value in observed.items():
        values = np.concatenate([chunk[name] for chunk in drawn])
        if not np.isnan(value[0]) and not np.isnan(values).all():
            result[name] = Difference(value=float(value[0]), interval=_interval(values))
    return result


def mcnemar_exact(only_first_right: int, only_second_right: int) -> float:
    """Two-sided exact McNemar test: the binomial probability of a split of the discordant items at least this uneven.

    p = min(1, 2 * sum over k <= min(b, c) of C(b + c, k) / 2^(b + c)); 1 without discordant items.

    Raises:
        UserError: a negative count.
    """
    if only_first_right < 0 or only_second_right < 0:
        raise UserError(
            f"Counts of discordant items are {only_first_right} and {only_second_right}; both must be >= 0."
        )
    total = only_first_right + only_second_right
    tail, term = 0, 1
    for chosen in range(min(only_first_right, only_second_right) + 1):
        tail += term
        term = term * (total - chosen) // (chosen + 1)
    return min(1.0, 2 * tail / 2**total)


def _resampled_counts(items: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks [R, items] of how often each item is drawn; every row sums to `items`."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        yield generator.multinomial(items, np.full(items, 1 / items), size=size).astype(np.float64)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.nanquantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(low=float(low), high=float(high))


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


def _answered_in_both(first: Sequence[ScoredItem], second: Sequence[ScoredItem]) -> np.ndarray:
    """Positions of the items that failed in neither run."""
    answered = np.flatnonzero(~np.isnan(item_scores(first) + item_scores(second)))
    if len(answered) == 0:
        raise UserError(f"None of the {len(first)} items was answered in both runs; there is nothing to compare.")
    return answered
