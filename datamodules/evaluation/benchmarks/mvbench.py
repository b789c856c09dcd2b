"""MVBench (arXiv 2311.17005): 20 tasks of 200 questions on short videos of many data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import ascii_uppercase

from datamodules.evaluation.benchmarks.annotation import checked_rows, lettered, video_record
from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record, Row
from rewards.errors import UserError
from rewards.types import ProblemType

TASKS: dict[str, tuple[str, bool]] = {
    "Action Sequence": ("star/Charades_v1_480", True),
    "Action Prediction": ("star/Charades_v1_480", True),
    "Action Antonym": ("ssv2_video", False),
    "Fine-grained Action": ("Moments_in_Time_Raw/videos", False),
    "Unexpected Action": ("FunQA_test/test", False),
    "Object Existence": ("clevrer/video_validation", False),
    "Object Interaction": ("star/Charades_v1_480", True),
    "Object Shuffle": ("perception/videos", False),
    "Moving Direction": ("clevrer/video_validation", False),
    "Action Localization": ("sta/sta_video", True),
    "Scene Transition": ("scene_qa/video", False),
    "Action Count": ("perception/videos", False),
    "Moving Count": ("clevrer/video_validation", False),
    "Moving Attribute": ("clevrer/video_validation", False),
    "State Change": ("perception/videos", False),
    "Fine-grained Pose": ("nturgbd", False),
    "Character Order": ("perception/videos", False),
    "Egocentric Navigation": ("vlnqa", False),
    "Episodic Reasoning": ("tvqa/frames_fps3_hq", True),
    "Counterfactual Inference": ("clevrer/video_validation", False),
}
"""Task -> folder of its videos, and whether its rows carry `start` and `end`. The task's file is its name in small
letters, joined by underscores."""


def official_score(kind: ProblemType, task: str | None, prediction: str, answer: str) -> float | None:
    """MVBench's `check_ans`: the first word, in small letters and without full stops, against "(a)".

    Right is a piece of "(a)" that holds the letter ("a", "a)", "(a"), or a word that contains "(a)". The authors' code
    also accepts the pieces without a letter, "" and "(" and ")": an empty answer is right there and wrong here.
    """
    if kind is not ProblemType.MULTIPLE_CHOICE:
        return None
    word = prediction.lower().split(" ")[0]
    letter = answer.lower()
    marked = f"({letter})"
    piece = word.replace(".", "")
    return float((letter in piece and piece in marked) or marked in word)


def convert(rows: Iterable[Row], task: str, *, folder: str = "MVBench/video") -> Iterator[Record]:
    """Records of one task's JSON file.

    Episodic Reasoning comes as folders of pictures, three a second; its records expect a video of 3 frames per second
    made of each, under the folder's name with `.mp4`.
    """
    subfolder, timed = TASKS[task]
    needed = "video question candidates answer" + (" start end" if timed else "")
    for number, row in enumerate(checked_rows(f"MVBench {task}", rows, needed)):
        candidates = list(row["candidates"])
        if row["answer"] not in candidates:
            raise UserError(f"MVBench {task}, row {number}: answer {row['answer']!r} is none of {candidates}.")
        video = f"{row['video']}.mp4" if task == "Episodic Reasoning" else row["video"]
        yield video_record(
            problem_id=f"{task}/{number}",
            problem=row["question"],
            problem_type=ProblemType.MULTIPLE_CHOICE,
            options=lettered(candidates),
            answer=ascii_uppercase[candidates.index(row["answer"])],
            path=f"./{folder}/{subfolder}/{video}",
            data_source="MVBench",
            task_type=task,
            **({"start": row["start"], "end": row["end"]} if timed else {}),
        )


MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    items=4000,
    notes=(
        "20 tasks of 200. Five of them ask about the seconds between `start` and `end`; published scores of the "
        "Video-R1 family read the whole video instead. Folders named `*_segment` hold videos that are cut already: "
        "with them, records must carry no `start` and `end`. Episodic Reasoning comes as folders of pictures, three a "
        "second."
    ),
    published={"VideoRFT-7B": 62.1, "Video-R1-7B": 63.9, "Qwen2.5-VL-7B": 59.4, "VideoRFT-3B": 59.5},
    official=official_score,
    breakdowns={"task": ("task", "task_type", "original_question_type", "question_type")},
    convert=convert,
    parts=tuple(TASKS),
    timed_tasks=frozenset(task for task, (_, timed) in TASKS.items() if timed),
)
