"""From the scores of a benchmark's items to its published numbers, with the number of items behind each of them.

A row is a mapping: `problem_id`, `problem_type`, `score` (from `rewards.evaluation.scoring.score_item` under the same
protocol; None for an item that failed and has no answer) and the record's further fields; those of `BREAKDOWNS` are
read.
Shapes: N rows, R weightings of the rows (1 for an aggregate, many for a bootstrap).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from rewards.evaluation.scoring import (
    VSI_CHOICE_TASKS,
    VSI_DIRECTION_LEVELS,
    VSI_NUMERIC_TASKS,
    Protocol,
    check_benchmark,
    unknown_vsi_task,
)
from rewards.types import ProblemType

Row = Mapping[str, Any]

BREAKDOWNS: Mapping[str, tuple[str, ...]] = {
    "vsibench": ("original_question_type", "question_type"),
    "videommmu": ("original_question_type", "track", "subject"),
    "mmvu": ("original_question_type", "subject"),
    "mvbench": ("original_question_type", "task", "task_type", "question_type"),
    "tempcompass": ("original_question_type", "task", "task_type", "question_type", "aspect", "dim"),
    "videomme": ("original_question_type", "duration", "domain", "sub_category", "task_type", "question_type"),
}
"""Benchmark -> fields of its rows that get a mean per value. A field that no row has gives no mean."""


@dataclass(frozen=True, kw_only=True)
class MeanPlan:
    """Which rows each mean of an aggregate is over."""

    members: Mapping[str, Sequence[int]]
    """Name -> positions of the rows behind it, failed ones included."""
    composites: Mapping[str, tuple[str, ...]]
    """Name -> the names it is the unweighted mean of, each defined before it; all other names are means over rows."""
    scale: float
    """100 for percent, 1 for fractions."""

    def values(self, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The means under R weightings.

        Args:
            scores: float64 [N], NaN where a row failed.
            weights: [R, N], how often each row counts; must be 0 where a row failed.

        Returns:
            Name -> float64 [R]; NaN where no row of a mean has weight. A composite is over its means that exist.
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


def aggregate(benchmark: str, protocol: Protocol, rows: Sequence[Row]) -> dict[str, float]:
    """The benchmark's numbers over all rows that were answered, and how many rows those are.

    Failed rows (score None) count neither as right nor as wrong: they are in no numerator and no denominator. For each
    mean NAME there are `scored/NAME`, its denominator, and `failed/NAME`, the rows it had to leave out; `scored` and
    `failed` are those of all rows. A mean without a scored row is absent, not 0.

    Protocol `videorft`, fractions in [0, 1] as in the released script's `final_acc`: `mean_acc`, the plain mean over
    all problem types but regression, and `mean_mra`, that over regression. The script writes 0.0 where there is no
    such item, and counts a failed batch as wrong.

    Protocol `official`, percent: `overall`, correct / total. On MMVU it is named `exact_letter_accuracy`, because the
    authors grade with a GPT model. On VSI-Bench it is the unweighted mean of the eight tasks, which carry the names of
    the authors' aggregate; `object_rel_direction_accuracy` is the mean of easy, medium and hard. Where a level or a
    task has no scored row, both are over those that have (the authors' code takes a missing direction as 0).

    Both: `FIELD/VALUE`, the mean of the item scores for each value of the fields in `BREAKDOWNS`, in the same unit.

    Raises:
        ValueError: unknown benchmark or protocol, a row of VSI-Bench without a known `original_question_type` under
            `official`, a row without `score` or `problem_type`, or a score outside [0, 1].
    """
    plan = mean_plan(benchmark, protocol, rows)
    scores = row_scores(rows)
    scored = ~np.isnan(scores)
    result = {
        name: float(value[0])
        for name, value in plan.values(scores, scored[None].astype(np.float64)).items()
        if not np.isnan(value[0])
    }
    result |= {"scored": float(scored.sum()), "failed": float((~scored).sum())}
    for name, positions in plan.members.items():
        result[f"scored/{name}"] = float(scored[positions].sum())
        result[f"failed/{name}"] = float((~scored[positions]).sum())
    return result


def delta_knowledge(before: float, after: float) -> float:
    """VideoMMMU's knowledge gain in percent: 100 * (after - before) / (100 - before), negative if the video confused.

    Args:
        before: accuracy in percent on the Adaptation questions without the lecture.
        after: accuracy in percent on the same questions with it.

    Raises:
        ValueError: an accuracy outside [0, 100], or before = 100, where there is nothing left to learn.
    """
    if not (0 <= before < 100 and 0 <= after <= 100):
        raise ValueError(f"Accuracies are before {before}, after {after}; give percent, before below 100.")
    return 100 * (after - before) / (100 - before)


def mean_plan(benchmark: str, protocol: Protocol, rows: Sequence[Row]) -> MeanPlan:
    """The means that `aggregate` reports for these rows; raises what it raises."""
    check_benchmark(benchmark, protocol)
    groups: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        for field in BREAKDOWNS[benchmark]:
            if row.get(field) is not None:
                groups[f"{field}/{row[field]}"].append(position)
    breakdown = {name: groups[name] for name in sorted(groups)}
    if protocol == "videorft":
        return MeanPlan(members=_plain_means(rows) | breakdown, composites={}, scale=1.0)
    if benchmark == "vsibench":
        return _vsi_plan(rows, breakdown)
    name = "exact_letter_accuracy" if benchmark == "mmvu" else "overall"
    return MeanPlan(members={name: range(len(rows))} | breakdown, composites={}, scale=100.0)


def row_scores(rows: Sequence[Row]) -> np.ndarray:
    """float64 [N]: the scores, NaN where an item failed.

    Raises:
        ValueError: a row without `score` (a failed item says None), or a score outside [0, 1].
    """
    scores = np.full(len(rows), np.nan)
    for position, row in enumerate(rows):
        if "score" not in row:
            raise ValueError(
                f"The row of problem_id {row.get('problem_id')} has no score; a failed item has score None."
            )
        score = row["score"]
        if score is None:
            continue
        if not 0 <= score <= 1:
            raise ValueError(f"The score of problem_id {row.get('problem_id')} is {score}; it must lie in [0, 1].")
        scores[position] = score
    return scores


class BenchmarkMetric(Metric):
    """`aggregate` over the rows of all ranks; two ranks give exactly the one-rank result.

    Rows travel between ranks as text, and equal rows of one `problem_id` count once.

    Args:
        benchmark: a key of `BREAKDOWNS`.
        protocol: the protocol that the rows were scored under.

    Raises:
        ValueError: unknown benchmark or protocol.
    """

    full_state_update = False
    packed: list[Tensor]
    """JSON Lines as byte values, one tensor per update. They are of the metric's float type, which holds 0 to 255
    exactly in every precision: torchmetrics sends an empty float tensor for a rank without rows, and gathering needs
    one type on all ranks."""

    def __init__(self, benchmark: str, protocol: Protocol) -> None:
        super().__init__()
        check_benchmark(benchmark, protocol)
        self.benchmark = benchmark
        self.protocol: Protocol = protocol
        self.add_state("packed", [], dist_reduce_fx="cat")

    def update(self, rows: Sequence[Row]) -> None:
        """Add rows; raises what `aggregate` raises for them, and a KeyError for a row without `problem_id`."""
        mean_plan(self.benchmark, self.protocol, rows)
        row_scores(rows)
        kept = ("problem_type", "score", *BREAKDOWNS[self.benchmark])
        slim = [
            {"problem_id": str(row["problem_id"])} | {name: row[name] for name in kept if name in row} for row in rows
        ]
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in slim)
        self.packed.append(torch.tensor(list(text.encode()), dtype=self.dtype, device=self.device))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of this rank, of all ranks while synchronized, by `problem_id`.

        Raises:
            ValueError: two different rows have the same `problem_id`.
        """
        parts = self.packed if isinstance(self.packed, list) else [self.packed]
        lines = b"".join(bytes(part.to(torch.uint8).tolist()) for part in parts).decode().splitlines()
        by_id: dict[str, dict[str, Any]] = {}
        for row in map(json.loads, lines):
            if by_id.setdefault(row["problem_id"], row) != row:
                raise ValueError(
                    f"problem_id {row['problem_id']} of {self.benchmark} has two different results; make the ids "
                    f"unique, and give each record to one rank only (a sampler that does not pad)."
                )
        return [by_id[problem_id] for problem_id in sorted(by_id)]

    def compute(self) -> dict[str, Tensor]:
        """`aggregate` of all ranks' rows as float64 scalars."""
        values = aggregate(self.benchmark, self.protocol, self.rows())
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def _plain_means(rows: Sequence[Row]) -> dict[str, list[int]]:
    means: dict[str, list[int]] = {"mean_acc": [], "mean_mra": []}
    for position, row in enumerate(rows):
        if "problem_type" not in row:
            raise ValueError(f"The row of problem_id {row.get('problem_id')} has no problem_type.")
        is_regression = ProblemType(row["problem_type"]) is ProblemType.REGRESSION
        means["mean_mra" if is_regression else "mean_acc"].append(position)
    return means


def _vsi_plan(rows: Sequence[Row], breakdown: Mapping[str, list[int]]) -> MeanPlan:
    for row in rows:
        if row.get("original_question_type") not in VSI_NUMERIC_TASKS + VSI_CHOICE_TASKS:
            raise unknown_vsi_task(row.get("original_question_type"))
    by_task = {name.removeprefix("original_question_type/"): positions for name, positions in breakdown.items()}
    tasks = {f"{task}_MRA:.5:.95:.05": by_task[task] for task in VSI_NUMERIC_TASKS if task in by_task}
    tasks |= {
        f"{task}_accuracy": by_task[task]
        for task in VSI_CHOICE_TASKS
        if task in by_task and task not in VSI_DIRECTION_LEVELS
    }
    composites = {}
    levels = [level for level in VSI_DIRECTION_LEVELS if level in by_task]
    if levels:
        tasks["object_rel_direction_accuracy"] = [position for level in levels for position in by_task[level]]
        composites["object_rel_direction_accuracy"] = tuple(f"original_question_type/{level}" for level in levels)
    if tasks:
        composites["overall"] = tuple(tasks)
    overall = {"overall": list(range(len(rows)))} if tasks else {}
    return MeanPlan(members=dict(breakdown) | tasks | overall, composites=composites, scale=100.0)
