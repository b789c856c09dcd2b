"""A benchmark of one's own, in one file: which of two colors comes first?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datamodules.evaluation.benchmarks.annotation import checked_rows, lettered, video_record
from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record, Row
from rewards.types import ProblemType


def first_letter(kind: ProblemType, task: str | None, prediction: str, answer: str) -> float | None:
    """Right is what begins with the letter."""
    return float(prediction.startswith(answer)) if kind is ProblemType.MULTIPLE_CHOICE else None


def convert(rows: Iterable[Row], *, folder: str = "Colors") -> Iterator[Record]:
    for row in checked_rows("Colors", rows, "id colors first level"):
        yield video_record(
            problem_id=row["id"],
            problem="Which color appears first?",
            problem_type=ProblemType.MULTIPLE_CHOICE,
            options=lettered(row["colors"]),
            answer="AB"[row["colors"].index(row["first"])],
            path=f"./{folder}/{row['id']}.mp4",
            level=row["level"],
        )


COLORS = Benchmark(
    name="colors",
    title="Colors",
    items=2,
    notes="Two questions, made up for the tests.",
    official=first_letter,
    headline="colors_accuracy",
    breakdowns={"level": ("level",)},
    convert=convert,
)
