"""One answered benchmark question as a row of `predictions.jsonl`: what was asked, said and scored, or why it failed.

The file holds one JSON object a line with the fields of `Prediction`, benchmark by benchmark in the order of the run,
and within a benchmark in the order of its data file. It holds every item exactly once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rewards.answer_format import parse_response
from rewards.evaluation.scoring import Protocol, UngradedError, score_item


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One item of one benchmark. Either `failure` is None and there is an `answer`, or the item failed and has none."""

    benchmark: str
    """Key of `datamodules.evaluation.benchmarks.BENCHMARKS`."""
    index: int
    """Place in the benchmark's data file, from 0."""
    problem_id: str
    """Unique within the benchmark."""
    problem_type: str
    """One of `ProblemType`."""
    data_type: str
    """video, image or text."""
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
    breakdown: dict[str, str] = field(default_factory=dict)
    """Field of `benchmark_metrics.BREAKDOWNS` -> the item's value, where it has one, such as task or duration."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of the record that its schema does not know, as they stand in the data file."""
    completion: str | None = None
    """What the model wrote; None for a failed item, and where options were scored by likelihood."""
    answer: str | None = None
    """What is scored: `predicted_answer(completion)`, or the likeliest option letter; None for a failed item."""
    option_logprobs: dict[str, float] | None = None
    """Option letter -> log-probability in nats, where options were scored by likelihood."""
    well_formed: bool | None = None
    """The completion is one think and one answer element; None where there is no completion."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """Protocol of the run -> score in [0, 1]; None where the item failed or the protocol has no rule for it."""
    ungraded: dict[str, str] = field(default_factory=dict)
    """Protocol -> why it has no rule for this kind of item. Such items are in none of its means."""
    failure: str | None = None
    """Why there is no answer: what is wrong with the media or the prompt, and how to mend it; None if there is one."""
    num_frames: int | None = None
    """Frames that the model saw, 1 for an image; None for text and failed items."""
    prompt_tokens: int | None = None
    """Vision tokens included; None for a failed item."""
    completion_tokens: int | None = None
    """End-of-sequence token included; None where there is no completion."""
    truncated: bool | None = None
    """The completion reached the token limit; None where there is no completion."""

    def to_line(self) -> str:
        """The row as JSON with a line feed at its end; equal predictions give equal bytes."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False) + "\n"


_FIELDS = frozenset(item.name for item in fields(Prediction))


def prediction_from(row: dict[str, Any]) -> Prediction:
    """The prediction that `asdict` or a line of the file holds.

    Raises:
        ValueError: a field is missing or unknown, so that the row was written by another version.
    """
    unknown, missing = sorted(row.keys() - _FIELDS), sorted(_FIELDS - row.keys())
    if unknown or missing:
        raise ValueError(
            f"A prediction has the unknown fields {unknown} and lacks {missing}; it was written by another version. "
            "Answer the questions anew in another folder."
        )
    return Prediction(**row)


def read_predictions(path: str | Path) -> list[Prediction]:
    """All rows of a `predictions.jsonl`, in its order.

    Raises:
        ValueError: no such file, or a line that is no prediction; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file (looked from {Path.cwd()}). Give the predictions.jsonl of a run.")
    predictions = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                predictions.append(prediction_from(json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    return predictions


@dataclass(frozen=True, kw_only=True)
class Grades:
    """The scores of one item under each protocol of a run, and the protocols that have no rule for it."""

    scores: dict[str, float | None]
    ungraded: dict[str, str]


def grade(
    benchmark: str,
    protocols: Sequence[Protocol],
    *,
    problem_type: str,
    question_type: str | None,
    answer: str | None,
    gold: str,
) -> Grades:
    """Score an answer under each protocol.

    Args:
        benchmark: its name.
        protocols: those of the run.
        problem_type: one of `ProblemType`.
        question_type: the benchmark's own kind of question, where it has kinds.
        answer: None for a failed item, whose scores are None.
        gold: the right answer without tags.

    Raises:
        ValueError: as `score_item`, but for kinds of item that a protocol does not grade.
    """
    scores: dict[str, float | None] = {}
    ungraded = {}
    for protocol in protocols:
        scores[protocol] = None
        try:
            score = score_item(
                benchmark,
                protocol,
                problem_type=problem_type,
                question_type=question_type,
                prediction=answer or "",  # a failed item's is only asked whether there is a rule for it
                answer=gold,
            )
        except UngradedError as error:
            ungraded[protocol] = str(error)
            continue
        if answer is not None:
            scores[protocol] = score
    return Grades(scores=scores, ungraded=ungraded)


def metric_rows(predictions: Iterable[Prediction], protocol: Protocol) -> list[dict[str, Any]]:
    """Rows for `rewards.evaluation.metrics` and `benchmark_statistics`: all items that the protocol has a rule for.

    Raises:
        ValueError: a prediction was not scored under this protocol.
    """
    rows = []
    for prediction in predictions:
        if protocol not in prediction.scores:
            raise ValueError(
                f"problem_id {prediction.problem_id} of {prediction.benchmark} has no score of protocol {protocol!r}; "
                f"the run scored {', '.join(map(repr, prediction.scores))}."
            )
        if protocol not in prediction.ungraded:
            rows.append(
                {
                    "problem_id": prediction.problem_id,
                    "problem_type": prediction.problem_type,
                    "score": prediction.scores[protocol],
                    **prediction.breakdown,
                }
            )
    return rows


def gold_answer(solution: str) -> str:
    """The answer inside a record's solution, which records always have."""
    answer = parse_response(solution).answer
    assert answer, "records without an answer are refused when their file is opened"
    return answer
