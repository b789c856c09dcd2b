"""VideoMMMU (arXiv 2501.13826): questions of six disciplines on recorded lectures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from datamodules.evaluation.benchmarks.annotation import checked_rows, lettered, video_record
from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record, Row
from rewards.accuracy import tolerant_numerical_accuracy
from rewards.errors import UserError
from rewards.options import chosen_letter
from rewards.types import ProblemType

Track = Literal["Perception", "Comprehension", "Adaptation"]
ADAPTATION_HINT = "The picture that the question speaks of is shown at the end of the video."

SUBJECTS: dict[str, str] = {
    "Art": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "Humanities": "History Literature Psychology Sociology",
    "Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
    "Mechanical_Engineering",
}
"""Discipline, which is also the folder of its videos -> its subjects."""
DISCIPLINES = {subject: discipline for discipline, subjects in SUBJECTS.items() for subject in subjects.split()}
"""Subject -> discipline."""


def official_score(kind: ProblemType, task: str | None, prediction: str, answer: str) -> float | None:
    """The option letter, or the number at two decimals.

    The authors use MMMU's parser on whole responses. Where that finds no letter it draws an option at random, and it
    looks for key phrases around numbers. Ours reads the answer alone with `chosen_letter`: what names no option,
    or could name two, is wrong, and so is a number with words around it.
    """
    if kind is ProblemType.MULTIPLE_CHOICE:
        return float(chosen_letter(prediction) == answer.upper())
    if kind in (ProblemType.NUMERICAL, ProblemType.REGRESSION):
        return tolerant_numerical_accuracy(prediction, answer)
    return None


def delta_knowledge(before: float, after: float) -> float:
    """The knowledge gain in percent: 100 * (after - before) / (100 - before), negative if the video confused.

    Args:
        before: accuracy in percent on the Adaptation questions without the lecture.
        after: accuracy in percent on the same questions with it.

    Raises:
        UserError: an accuracy outside [0, 100], or before = 100, where there is nothing left to learn.
    """
    if not (0 <= before < 100 and 0 <= after <= 100):
        raise UserError(f"Accuracies are before {before}, after {after}; give percent, before below 100.")
    return 100 * (after - before) / (100 - before)


def convert(
    rows: Iterable[Row], track: Track, *, folder: str = "VideoMMMU", question_only: bool = False
) -> Iterator[Record]:
    """Records of one track.

    Args:
        rows: of the Parquet file of a track.
        track: which one it is.
        folder: of the disciplines' folders, relative to the data root.
        question_only: point to the clips without the lecture, for the score before it in the knowledge gain.
    """
    for row in checked_rows("VideoMMMU", rows, "id question answer question_type"):
        subject = "_".join(row["id"].split("_")[1:-1])
        if subject not in DISCIPLINES:
            raise UserError(f"VideoMMMU question {row['id']!r}: its subject {subject!r} is none of the 30 known ones.")
        options = [] if row["question_type"] == "open" else lettered(row.get("options"))
        video = f"question_only/{row['id']}_image" if question_only else f"{DISCIPLINES[subject]}/{row['id']}"
        hint = f"{ADAPTATION_HINT}\n" if track == "Adaptation" else ""
        yield video_record(
            problem_id=f"{track}/{row['id']}",
            problem=hint + row["question"],
            problem_type=ProblemType.MULTIPLE_CHOICE if options else _open_kind(row["answer"]),
            options=options,
            answer=str(row["answer"]),
            path=f"./{folder}/{video}.mp4",
            data_source="VideoMMMU",
            track=track,
            subject=subject,
            discipline=DISCIPLINES[subject],
            question_type=row["question_type"],
        )


def _open_kind(answer: object) -> ProblemType:
    number = re.fullmatch(r"[-+]?[\d,]*\.?\d+", str(answer).strip())
    return ProblemType.NUMERICAL if number else ProblemType.FREE_FORM


VIDEOMMMU = Benchmark(
    name="videommmu",
    title="VideoMMMU",
    items=900,
    notes=(
        "Some circulated files point to question-only clips. The picture of an Adaptation question stands at the end "
        "of its video, so the last frame must be among those sampled."
    ),
    published={"VideoRFT-7B": 51.1, "Video-R1-7B": 52.3, "Qwen2.5-VL-7B": 47.4, "VideoRFT-3B": 41.1},
    official=official_score,
    breakdowns={"track": ("track", "original_question_type"), "subject": ("subject",)},
    convert=convert,
    parts=get_args(Track),
    question_only=True,
    known_defects={
        "question_only": (
            "this clip shows the question without the lecture (it serves as the `before` of the knowledge gain). Point "
            "the record to the full video of the same id."
        ),
        "_image.mp4": "this clip shows the question's picture alone; use the full video.",
    },
)
