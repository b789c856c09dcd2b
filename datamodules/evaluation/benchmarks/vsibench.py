"""VSI-Bench (arXiv 2412.14171): distances, sizes, counts, directions and routes in videos of rooms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from datamodules.evaluation.benchmarks.annotation import checked_rows, lettered, video_record
from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record, Row
from rewards.errors import UserError
from rewards.evaluation.scoring import TaskMeans
from rewards.normalize import gold_number, parse_number
from rewards.types import ProblemType

NUMERIC_TASKS = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
CHOICE_TASKS = ("object_rel_distance", "route_planning", "obj_appearance_order")
DIRECTION_LEVELS = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
"""Choice tasks that the official score counts as one."""
TASKS = (*NUMERIC_TASKS, *CHOICE_TASKS, *DIRECTION_LEVELS)

TASK_MEANS = TaskMeans(
    field="original_question_type",
    means={
        **{f"{task}_MRA:.5:.95:.05": (task,) for task in NUMERIC_TASKS},
        **{f"{task}_accuracy": (task,) for task in CHOICE_TASKS},
        "object_rel_direction_accuracy": DIRECTION_LEVELS,
    },
)
"""The eight tasks under the names of the authors' aggregate. Where a level of direction or a task has no scored item,
the mean is over those that have; the authors' code takes a missing direction as 0."""


def official_score(kind: ProblemType, task: str | None, prediction: str, answer: str) -> float:
    """VSI-Bench's `vsibench_process_results`: the first word without full stops at its end, compared by task.

    Choice tasks: equal to the gold letter, letter case apart ("B because" is B, "(B)" is nothing). Numeric tasks:
    `mean_relative_accuracy` of that word as a number, 0 if it is none; a comma makes it none ("1,200" scores 0).
    """
    word = prediction.split(" ")[0].rstrip(".").strip()
    if task not in NUMERIC_TASKS:
        return float(word.lower() == answer.lower())
    gold, number = gold_number(answer, _plain_number), _plain_number(word)
    return 0.0 if number is None else mean_relative_accuracy(number, gold)


def mean_relative_accuracy(prediction: float, gold: float) -> float:
    """VSI-Bench's MRA: fraction of theta in {0.50, 0.55, ..., 0.95} with |p - g| / g <= 1 - theta.

    In float64; (3, 4) gives 0.6. The error is divided by g itself, as in the authors' code, where a negative g would
    accept everything.

    Raises:
        UserError: the gold number is not positive; lengths, areas and counts of the benchmark all are.
    """
    if gold <= 0:
        raise UserError(f"The gold answer {gold:g} is not positive; its relative error is undefined.")
    error = abs(prediction - gold) / gold
    return float((error <= 1 - np.linspace(0.5, 0.95, 10)).mean())


def convert(rows: Iterable[Row], *, folder: str = "VSI-Bench") -> Iterator[Record]:
    """Records of the rows of `test.jsonl`."""
    for row in checked_rows("VSI-Bench", rows, "id dataset scene_name question_type question ground_truth"):
        task = row["question_type"]
        if task not in TASKS:
            raise UserError(f"VSI-Bench question {row['id']}: question_type is {task!r}; known are {', '.join(TASKS)}.")
        numeric = task in NUMERIC_TASKS
        yield video_record(
            problem_id=str(row["id"]),
            problem=row["question"],
            problem_type=ProblemType.REGRESSION if numeric else ProblemType.MULTIPLE_CHOICE,
            options=[] if numeric else lettered(row.get("options")),
            answer=str(row["ground_truth"]),
            path=f"./{folder}/{row['dataset']}/{row['scene_name']}.mp4",
            data_source="VSI-Bench",
            original_question_type=task,
            scene_name=row["scene_name"],
        )


def _plain_number(text: str) -> float | None:
    return None if "," in text else parse_number(text)


VSIBENCH = Benchmark(
    name="vsibench",
    title="VSI-Bench",
    items=5130,
    notes="Direction questions come as easy, medium and hard; the official score counts the three as one task.",
    published={"VideoRFT-7B": 36.8, "Video-R1-7B": 35.8, "Qwen2.5-VL-7B": 31.8, "VideoRFT-3B": 32.5},
    official=official_score,
    breakdowns={"task": ("original_question_type", "question_type")},
    task_means=TASK_MEANS,
    convert=convert,
)
