"""MMVU (arXiv 2501.12380): expert questions on videos of 27 subjects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datamodules.evaluation.benchmarks.annotation import checked_rows, video_record
from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record, Row
from rewards.accuracy import multiple_choice_accuracy
from rewards.types import ProblemType


def exact_letter(kind: ProblemType, task: str | None, prediction: str, answer: str) -> float | None:
    """The authors grade with a GPT model, which no local rule reproduces: this is exact letter.

    It scores the multiple-choice items only, by equal texts, and the result is named exact_letter_accuracy and never
    overall, so that it cannot be taken for the authors' number.
    """
    return multiple_choice_accuracy(prediction, answer) if kind is ProblemType.MULTIPLE_CHOICE else None


def convert(rows: Iterable[Row], *, folder: str = "MMVU") -> Iterator[Record]:
    """Records of the multiple-choice rows of `validation.json`.

    Open-ended rows are left out: the benchmark's published score on them needs a judge.
    """
    for row in checked_rows("MMVU", rows, "id video question_type question choices answer metadata"):
        if row["question_type"] != "multiple-choice":
            continue
        before, found, video = row["video"].partition("/videos/")
        yield video_record(
            problem_id=row["id"],
            problem=row["question"],
            problem_type=ProblemType.MULTIPLE_CHOICE,
            options=[f"{letter}. {text}" for letter, text in row["choices"].items() if text],
            answer=row["answer"],
            path=f"./{folder}/videos/{video if found else before}",
            data_source="MMVU",
            subject=row["metadata"]["subject"],
        )


MMVU = Benchmark(
    name="mmvu",
    title="MMVU",
    items=625,
    notes=(
        "The multiple-choice questions (A to E) of the validation set; its 375 open questions need a judge. The "
        "official score has a GPT model grade the choices too, this one takes the exact letter."
    ),
    published={"VideoRFT-7B": 68.5, "Video-R1-7B": 63.8, "Qwen2.5-VL-7B": 61.3, "VideoRFT-3B": 55.1},
    official=exact_letter,
    headline="exact_letter_accuracy",
    breakdowns={"subject": ("subject",), "original question type": ("original_question_type",)},
    convert=convert,
)
