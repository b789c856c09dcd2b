"""From the scores of a benchmark's items to its published numbers, with the number of items behind each of them.

Shapes: N items, R weightings of the items (1 for an aggregate, many for a bootstrap).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rewards.errors import UserError
from rewards.evaluation.scoring import BenchmarkScoring, ScoringRule, TaskMeans
from rewards.types import ProblemType

Unit = Literal["fraction", "percent"]
UNITS: Mapping[ScoringRule, Unit] = {"videorft": "fraction", "official": "percent"}
"""Of all means under a scoring rule."""


@dataclass(frozen=True, kw_only=True)
class ScoredItem:
    """One benchmark question with its score under one scoring rule."""

    problem_id: str
    problem_type: str
    """One of `ProblemType`."""
    score: float | None
    """In [0, 1]; None for an item that failed and has no answer."""
    categories: Mapping[str, str]
    """Field of the benchmark's breakdowns -> category."""

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 1:
            raise UserError(f"The score of problem_id {self.problem_id} is {self.score}; it must lie in [0, 1].")


@dataclass(frozen=True, kw_only=True)
class Mean:
    """One number of a benchmark and what is behind it."""

    value: float | None
    """In the unit of the scoring rule; None where no item was scored."""
    low: float | None = None
    high: float | None = None
    """Bounds of its interval in the same unit; None where none was computed."""
    scored: int
    """Items that it is over."""
    failed: int
    """Items that it had to leave out."""


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """Which items each mean is over."""

    members: Mapping[str, Sequence[int]]
    """Name -> positions of the items behind it, failed ones included."""
    composites: Mapping[str, tuple[str, ...]]
    """Name -> the names it is the unweighted mean of, each defined before it; all other names are means over items."""
    scale: float
    """100 for percent, 1 for fractions."""

    def values(self, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> float64 [R], the mean under each weighting; NaN where none of its items has weight.

        Args:
            scores: float64 [N], NaN where an item failed.
            weights: [R, N], how often each item counts; must be 0 where an item failed.
        """
        finite = np.nan_to_num(scores)
        result = {}
        for name, positions in self.members.items():
            if name in self.composites:
                parts = np.stack([result[part] for part in self.composites[name]])  # [parts, R]
                present = ~np.isnan(parts)
                sums, counts = np.where(present, parts, 0.0).sum(0), present.sum(0)
            else:
                chosen = weights[:, positions]
                sums, counts = self.scale * (chosen @ finite[positions]), chosen.sum(1)
            result[name] = np.divide(sums, counts, out=np.full(len(weights), np.nan), where=counts > 0)
        return result


def aggregate(scoring: BenchmarkScoring, rule: ScoringRule, items: Sequence[ScoredItem]) -> dict[str, Mean]:
    """The benchmark's numbers over all items that were answered.

    Failed items (score None) count neither as right nor as wrong: they are in no numerator and no denominator. A mean
    whose items all failed has no value, and one that no item belongs to is absent.

    Scoring rule `videorft`, fractions in [0, 1] as in the released script's `final_acc`: `mean_acc`, the plain mean
    over all problem types but regression, and `mean_mra`, that over regression. The script writes 0.0 where there is
    no such item, and counts a failed batch as wrong.

    Scoring rule `official`, percent: `scoring.headline`, correct / total, or, where the benchmark has `task_means`,
    those and their unweighted mean. A task without a scored item is left out of it.

    Both: `FIELD/CATEGORY`, the mean of the item scores for each category of the breakdowns, in the same unit.

    Raises:
        UserError: an item without a known task under `official`, where the benchmark has `task_means`.
    """
    aggregation = aggregation_of(scoring, rule, items)
    scores = item_scores(items)
    scored = ~np.isnan(scores)
    values = aggregation.values(scores, scored[None].astype(np.float64))
    return {
        name: Mean(
            value=None if np.isnan(values[name][0]) else float(values[name][0]),
            scored=int(scored[positions].sum()),
            failed=int((~scored[positions]).sum()),
        )
        for name, positions in aggregation.members.items()
        if len(positions)
    }


def headline_names(scoring: BenchmarkScoring, rule: ScoringRule) -> tuple[str, ...]:
    """The means that stand for the whole benchmark."""
    return ("mean_acc", "mean_mra") if rule == "videorft" else (scoring.headline,)


def aggregation_of(scoring: BenchmarkScoring, rule: ScoringRule, items: Sequence[ScoredItem]) -> Aggregation:
    """The means that `aggregate` reports for these items; raises what it raises."""
    found: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        for field, category in item.categories.items():
            found[f"{field}/{category}"].append(position)
    by_category = {name: found[name] for name in sorted(found)}
    scale = 100.0 if UNITS[rule] == "percent" else 1.0
    composites: dict[str, tuple[str, ...]] = {}
    if rule == "videorft":
        means: dict[str, list[int]] = {"mean_acc": [], "mean_mra": []}
        for position, item in enumerate(items):
            regression = ProblemType(item.problem_type) is ProblemType.REGRESSION
            means["mean_mra" if regression else "mean_acc"].append(position)
        members = means | by_category
    elif scoring.task_means is None:
        members = {scoring.headline: list(range(len(items)))} | by_category
    else:
        for item in items:
            scoring.task_means.check(scoring.title, item.categories.get(scoring.task_means.field))
        tasks, composites = _task_means(scoring.task_means, by_category)
        if tasks:
            composites[scoring.headline] = tuple(tasks)
            tasks[scoring.headline] = list(range(len(items)))
        members = by_category | tasks
    return Aggregation(members=members, composites=composites, scale=scale)


def item_scores(items: Sequence[ScoredItem]) -> np.ndarray:
    """float64 [N]: the scores, NaN where an item failed."""
    return np.array([np.nan if item.score is None else item.score for item in items], dtype=np.float64)


def _task_means(
    task_means: TaskMeans, by_category: Mapping[str, list[int]]
) -> tuple[dict[str, list[int]], dict[str, tuple[str, ...]]]:
    """The members of the tasks' means and, for those over several tasks, what they are composed of."""
    members, composites = {}, {}
    for name, tasks in task_means.means.items():
        present = [part for task in tasks if (part := f"{task_means.field}/{task}") in by_category]
        if present:
            members[name] = [position for part in present for position in by_category[part]]
        if present and len(tasks) > 1:
            composites[name] = tuple(present)
    return members, composites
