"""One answered benchmark question as a line of `predictions.jsonl`: what was asked, said and scored, or why it failed.

The file holds one JSON object a line with the fields of `Prediction`, benchmark by benchmark in the order of the run,
and within a benchmark in the order of its data file. It holds every item exactly once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rewards.answer_format import parse_response
from rewards.errors import UserError
from rewards.evaluation.metrics import ScoredItem
from rewards.evaluation.scoring import BenchmarkScoring, ScoringRule, score_item
from rewards.types import DataType


@dataclass(frozen=True, kw_only=True)
class Question:
    """One item of one benchmark, before it is answered."""

    benchmark: str
    index: int
    """Place in the benchmark's data file, from 0."""
    problem_id: str
    """Unique within the benchmark."""
    problem_type: str
    """One of `ProblemType`."""
    data_type: DataType
    question: str
    """The record's `problem`; options may stand in it."""
    options: list[str] = field(default_factory=list)
    """As listed in the record; empty where there are none or where they stand in the question."""
    gold: str
    """The right answer without its tags."""
    path: str | None
    """Media file relative to the data root; None for a text-only item."""
    start: float | None = None
    """Seconds; the question is about the video from here on. None for its beginning."""
    end: float | None = None
    """Seconds; None for the end of the video."""
    categories: dict[str, str] = field(default_factory=dict)
    """Field of the benchmark's breakdowns -> the item's category, where it has one, such as its task or duration."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of the record that its schema does not know, as they stand in the data file."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an item. Either `failure` is None and there is an `answer`, or the item failed and has none."""

    completion: str | None = None
    """What the model wrote; None for a failed item, and where options were scored by likelihood."""
    answer: str | None = None
    """What is scored: `predicted_answer(completion)`, or the likeliest option letter; None for a failed item."""
    option_logprobs: dict[str, float] | None = None
    """Option letter -> log-probability in nats, where options were scored by likelihood."""
    well_formed: bool | None = None
    """The completion is one think and one answer element; None where there is no completion."""
    failure: str | None = None
    """Why there is no answer: what is wrong with the media or the prompt, and how to fix it; None if there is one."""
    num_frames: int | None = None
    """Frames that the model saw, 1 for an image; None for text and failed items."""
    prompt_tokens: int | None = None
    """Vision tokens included; None for a failed item."""
    completion_tokens: int | None = None
    """End-of-sequence token included; None where there is no completion."""
    truncated: bool | None = None
    """The completion reached the token limit; None where there is no completion."""


@dataclass(frozen=True, kw_only=True)
class Grades:
    """The scores of one item under each scoring rule of a run."""

    scores: dict[str, float | None] = field(default_factory=dict)
    """Scoring rule of the run -> score in [0, 1]; None where the item failed or the rule does not grade it."""
    ungraded: dict[str, str] = field(default_factory=dict)
    """Scoring rule -> why it does not grade this kind of item. Such items are in none of its means."""


@dataclass(frozen=True, kw_only=True)
class Prediction(Grades, Outcome, Question):
    """One line of `predictions.jsonl`."""

    def to_line(self) -> str:
        """The prediction as JSON with a line feed at its end; equal predictions give equal bytes."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False) + "\n"


_FIELDS = frozenset(item.name for item in fields(Prediction))


def prediction_from(row: object) -> Prediction:
    """The prediction that `asdict` or a line of the file holds.

    Raises:
        UserError: no JSON object, or a field is missing or unknown, so that the line was written by another version.
    """
    if not isinstance(row, dict):
        raise UserError(f"a prediction is an object {{...}}; given {type(row).__name__}.")
    unknown, missing = sorted(row.keys() - _FIELDS), sorted(_FIELDS - row.keys())
    if unknown or missing:
        raise UserError(
            f"A prediction has the unknown fields {unknown} and lacks {missing}; it was written by another version. "
            "Answer the questions anew in another folder."
        )
    return Prediction(**row)


def read_predictions(path: str | Path, *, partial: bool = False) -> list[Prediction]:
    """All predictions of a `predictions.jsonl`, in its order.

    Args:
        path: of the file.
        partial: the file may end in the middle of a line, which is then left out.

    Raises:
        UserError: no such file, or a line that is no prediction of this version; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file (looked from {Path.cwd()}). Give the predictions.jsonl of a run.")
    *lines, rest = path.read_bytes().split(b"\n")
    predictions = []
    for number, line in enumerate([*lines, rest] if rest and not partial else lines, start=1):
        try:
            predictions.append(prediction_from(json.loads(line.decode())))
        except (ValueError, RecursionError) as error:
            remedy = ". Remove this line; its question is answered again." if partial else ""
            raise UserError(f"{path}:{number}: {error}{remedy}") from error
    return predictions


def grade(
    scoring: BenchmarkScoring,
    rules: Sequence[ScoringRule],
    *,
    problem_type: str,
    categories: Mapping[str, str],
    answer: str | None,
    gold: str,
) -> Grades:
    """Score an answer under each rule; of a failed item, whose answer is None, only find which rules do not grade it.

    Raises:
        UserError: as `score_item`.
    """
    scores: dict[str, float | None] = {}
    ungraded = {}
    for rule in rules:
        score = score_item(
            scoring, rule, problem_type=problem_type, categories=categories, prediction=answer or "", answer=gold
        )
        if score is None:
            ungraded[rule] = (
                f"problem_type is {problem_type!r}; {scoring.title}'s authors grade it with a language model or not at "
                "all, and there is no official rule for it here."
            )
        scores[rule] = None if answer is None else score
    return Grades(scores=scores, ungraded=ungraded)


def scored_items(predictions: Iterable[Prediction], rule: ScoringRule) -> list[ScoredItem]:
    """The items that a scoring rule grades, with their scores.

    Raises:
        UserError: a prediction was not scored under this rule.
    """
    items = []
    for prediction in predictions:
        if rule not in prediction.scores:
            raise UserError(
                f"problem_id {prediction.problem_id} of {prediction.benchmark} has no score under {rule!r}; the run "
                f"scored {', '.join(map(repr, prediction.scores))}."
            )
        if rule not in prediction.ungraded:
            items.append(
                ScoredItem(
                    problem_id=prediction.problem_id,
                    problem_type=prediction.problem_type,
                    score=prediction.scores[rule],
                    categories=prediction.categories,
                )
            )
    return items


def gold_answer(solution: str) -> str:
    """The answer inside a record's solution, which records always have."""
    answer = parse_response(solution).answer
    assert answer, "records without an answer are refused when their file is opened"
    return answer
