from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.benchmarks.mvbench import TASKS as MVBENCH_TASKS
from datamodules.evaluation.benchmarks.videommmu import DISCIPLINES
from datamodules.types import VideoRecord
from rewards.types import ProblemType


def record(path: str = "./a.mp4", **extra: Any) -> VideoRecord:
    return VideoRecord(
        problem_id="0",
        problem="?",
        data_type="video",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        solution="<answer>A</answer>",
        path=path,
        extra=extra,
        file=Path("eval.json"),
        line=1,
    )


def test_registry_is_keyed_by_name():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
    assert BENCHMARKS["mmvu"].file == "eval_mmvu.json"


def test_sizes_are_those_of_the_benchmarks():
    assert {name: benchmark.items for name, benchmark in BENCHMARKS.items()}.items() >= {
        "vsibench": 5130,
        "videommmu": 3 * 300,
        "mmvu": 625,
        "mvbench": 20 * 200,
        "tempcompass": 1580 + 2453 + 1503 + 2004,
        "videomme": 900 * 3,
    }.items()
    assert len(MVBENCH_TASKS) == 20
    assert len(DISCIPLINES) == 30


def test_five_tasks_of_mvbench_carry_times():
    assert BENCHMARKS["mvbench"].timed_tasks == {
        "Action Sequence",
        "Action Prediction",
        "Object Interaction",
        "Action Localization",
        "Episodic Reasoning",
    }


def test_published_numbers_are_percent_for_the_same_models():
    for benchmark in filter(lambda benchmark: benchmark.published, BENCHMARKS.values()):
        assert list(benchmark.published) == ["VideoRFT-7B", "Video-R1-7B", "Qwen2.5-VL-7B", "VideoRFT-3B"]
        assert all(30 < value < 80 for value in benchmark.published.values())


def test_categories_come_from_the_first_field_that_is_stated():
    videomme, tempcompass = BENCHMARKS["videomme"], BENCHMARKS["tempcompass"]
    assert videomme.category(record(task_type=None, question_type="OCR", duration="long"), "task") == "OCR"
    assert videomme.category(record(task_type="Counting", question_type="OCR"), "task") == "Counting"
    assert videomme.category(record(), "duration") is None
    assert tempcompass.category(record(dim="speed"), "aspect") == "speed"
    with pytest.raises(ValueError, match="MMVU has no breakdown 'task'; it has subject"):
        BENCHMARKS["mmvu"].category(record(), "task")


@pytest.mark.parametrize("path", ["./VideoMMMU/question_only/dev_Biology_3_image.mp4", "./x/dev_Biology_3_image.mp4"])
def test_question_only_clips_are_found_by_their_path(path):
    assert path in BENCHMARKS["videommmu"].defect(record(path))
    assert BENCHMARKS["videommmu"].defect(record("./VideoMMMU/Science/dev_Biology_3.mp4")) is None
    assert BENCHMARKS["mvbench"].defect(record(path)) is None


@pytest.mark.parametrize("task", ["Action Sequence", "action_sequence"])
def test_missing_times_are_found(task):
    mvbench = BENCHMARKS["mvbench"]
    assert mvbench.defect(record(task=task, start=1.0)).startswith("end missing: MVBench's task")
    assert mvbench.defect(record(task=task)).startswith("start and end missing")
    assert mvbench.defect(record(task=task, start=0, end=3)) is None
    assert mvbench.defect(record(task="Action Antonym")) is None


@pytest.mark.parametrize(
    ("duration", "seconds", "fits"),
    [("short", 100, True), ("short", 200, False), ("medium", 900, True), ("long", 900, False), ("long", 3500, True)],
)
def test_videos_of_another_length_than_their_category_are_found(duration, seconds, fits):
    fault = BENCHMARKS["videomme"].defect(record(duration=duration), seconds)
    assert (fault is None) is fits
    if not fits:
        assert fault.startswith(f"the video lasts {seconds} s, but Video-MME counts it as {duration!r}")


def test_length_is_not_asked_where_it_is_not_known():
    assert BENCHMARKS["videomme"].defect(record(duration="long"), None) is None
    assert BENCHMARKS["videomme"].defect(record(), 1.0) is None
    assert "question without the lecture" in BENCHMARKS["videommmu"].defect(record("./question_only/a.mp4"), 1.0)
