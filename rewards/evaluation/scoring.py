"""Score of one benchmark answer, by the rule of the paper's script or by the benchmark's own.

Scoring rule `videorft` is what the released evaluation script computes, the same for all benchmarks. Scoring rule
`official` is that of each benchmark's authors as far as it needs no language model as a judge; it stands in the
benchmark's own file. Neither ever draws a random option for an answer that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from rewards.accuracy import multiple_choice_accuracy, numerical_accuracy
from rewards.answer_format import parse_response
from rewards.errors import UserError, check_choice
from rewards.normalize import gold_number, parse_number
from rewards.types import ProblemType

ScoringRule = Literal["videorft", "official"]

OfficialRule = Callable[[ProblemType, str | None, str, str], float | None]
"""(problem type, task, prediction, gold answer) -> score in [0, 1]; None where the authors grade this kind of question
with a language model or not at all. Only a benchmark with `task_means` is told the task."""


@dataclass(frozen=True, kw_only=True)
class TaskMeans:
    """The official score of a benchmark as the unweighted mean of its tasks."""

    field: str
    """Field of a record that states its task."""
    means: Mapping[str, tuple[str, ...]]
    """Name of a mean -> the task that it is over; of several tasks it is the unweighted mean of their means."""

    def check(self, title: str, task: str | None) -> None:
        """Raise a UserError that lists the tasks if the benchmark has none of this name."""
        tasks = [task for tasks in self.means.values() for task in tasks]
        if task not in tasks:
            raise UserError(
                f"{self.field} is {task!r}; the official {title} score needs one of {', '.join(tasks)}. Add it to the "
                "record, or use the scoring rule videorft alone."
            )


@dataclass(frozen=True, kw_only=True)
class BenchmarkScoring:
    """What the scores of a benchmark follow from; `datamodules.evaluation.benchmarks` adds what its data are."""

    title: str
    """As its authors write it."""
    official: OfficialRule
    headline: str = "overall"
    """Name of the official score of the whole benchmark."""
    breakdowns: Mapping[str, tuple[str, ...]]
    """What scores are broken down by -> record fields that may hold the category; each field gets its own means."""
    task_means: TaskMeans | None = None
    """How the official score comes from the tasks; None for the plain mean of all items."""

    def categories(self, extra: Mapping[str, Any]) -> dict[str, str]:
        """Field of the breakdowns -> category, for those that a record's further fields state."""
        fields = (field for fields in self.breakdowns.values() for field in fields)
        return {field: str(extra[field]) for field in fields if extra.get(field) is not None}


def predicted_answer(completion: str) -> str:
    """The text that is scored: the first answer element, or the whole completion if there is none or an empty one.

    The fallback is the released script's; the RL rewards do not have it (there an answer without tags is no answer).
    """
    return parse_response(completion).answer or completion.strip()


def score_item(
    scoring: BenchmarkScoring,
    rule: ScoringRule,
    *,
    problem_type: str | ProblemType,
    categories: Mapping[str, str],
    prediction: str,
    answer: str,
) -> float | None:
    """Score one answered question, in [0, 1]; None where the official rule does not grade this kind of question.

    Args:
        scoring: of the benchmark.
        rule: `videorft` (see `videorft_score`) or `official` (see the rule in the benchmark's file).
        problem_type: one of `ProblemType`.
        categories: of the record.
        prediction: the text that `predicted_answer` gives; "" is a wrong answer.
        answer: the gold answer without its tags.

    Raises:
        UserError: unknown rule, problem type or task; an empty gold answer, or one that the rule cannot read, such as
            a word where it needs a number.
    """
    check_choice("scoring rule", rule, get_args(ScoringRule))
    kind = ProblemType(problem_type)
    if not answer.strip():
        raise UserError(f"The gold answer of a {scoring.title} item is empty; every prediction would be wrong.")
    if rule == "videorft":
        return videorft_score(kind, prediction.strip(), answer.strip())
    task = None
    if scoring.task_means is not None:
        task = categories.get(scoring.task_means.field)
        scoring.task_means.check(scoring.title, task)
    return scoring.official(kind, task, prediction.strip(), answer.strip())


def videorft_score(kind: ProblemType, prediction: str, answer: str) -> float:
    """The released script's `reward_fn`, for all benchmarks alike.

    Multiple choice: equal texts. Numerical: equal when rounded to two decimals, 0 if exactly one of the two contains
    "." or ",". Regression: `float32_mean_relative_accuracy`, thousands commas removed. OCR and free-form: 0, because
    the script has no rule for them. Unlike the script, a gold answer that is no number is an error and not a 0.
    """
    if kind is ProblemType.MULTIPLE_CHOICE:
        return multiple_choice_accuracy(prediction, answer)
    if kind is ProblemType.NUMERICAL:
        return numerical_accuracy(prediction, answer)
    if kind is ProblemType.REGRESSION:
        gold, number = gold_number(answer), parse_number(prediction)
        return 0.0 if number is None else float32_mean_relative_accuracy(number, gold)
    return 0.0


def float32_mean_relative_accuracy(prediction: float, gold: float) -> float:
    """Fraction of theta in {0.50, 0.55, ..., 0.95} with |p - g| / (|g| + 1e-8) < 1 - theta, in float32 as released.

    Float32 decides ties: (3, 4) gives 0.5, while 5.25 against 5, an error of exactly 0.05, passes even theta = 0.95.
    """
    target = torch.tensor(gold, dtype=torch.float32)
    error = (torch.tensor(prediction, dtype=torch.float32) - target).abs() / (target.abs() + 1e-8)
    thresholds = torch.arange(0.5, 0.95 + 0.05 / 2, 0.05, dtype=torch.float32)
    return (error < 1 - thresholds).float().mean().item()
