"""Video-MME (arXiv 2405.21075): three questions on each of 900 videos from eleven seconds to one hour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from datamodules.evaluation.benchmarks.annotation import checked_rows, lettered, video_record
from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record, Row
from rewards.types import ProblemType


def official_score(kind: ProblemType, task: str | None, prediction: str, answer: str) -> float | None:
    """The first capital A, B, C or D anywhere in the prediction is the answer.

    The phrases that the authors' code removes first ("The best answer is") hold no such capital, so they change
    nothing; "Best answer: C" reads as B there and here. Their code leaves an answer without such a capital out of the
    denominator; here it is wrong.
    """
    if kind is not ProblemType.MULTIPLE_CHOICE:
        return None
    match = re.search("[ABCD]", prediction)
    return float(match is not None and match[0] == answer.upper())


def convert(rows: Iterable[Row], *, folder: str = "Video-MME/data") -> Iterator[Record]:
    """Records of the rows of the Parquet file."""
    kept = ("duration", "domain", "sub_category", "task_type")
    for row in checked_rows("Video-MME", rows, " ".join(("question_id videoID question options answer", *kept))):
        yield video_record(
            problem_id=row["question_id"],
            problem=row["question"],
            problem_type=ProblemType.MULTIPLE_CHOICE,
            options=lettered(row["options"]),
            answer=row["answer"],
            path=f"./{folder}/{row['videoID']}.mp4",
            data_source="Video-MME",
            videoID=row["videoID"],
            **{name: row[name] for name in kept},
        )


VIDEOMME = Benchmark(
    name="videomme",
    title="Video-MME",
    items=2700,
    notes="900 videos of 11 seconds to one hour, without subtitles. Questions of one video are correlated.",
    published={"VideoRFT-7B": 59.8, "Video-R1-7B": 59.3, "Qwen2.5-VL-7B": 52.8, "VideoRFT-3B": 45.4},
    official=official_score,
    breakdowns={
        "duration": ("duration",),
        "domain": ("domain",),
        "task": ("task_type", "original_question_type", "question_type"),
        "sub category": ("sub_category",),
    },
    convert=convert,
    # Published: less than 2 minutes, 4 to 15, 30 to 60.
    durations={"short": (0, 3 * 60), "medium": (3 * 60, 22.5 * 60), "long": (22.5 * 60, 75 * 60)},
)
