from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.layouts import MVBENCH_TASKS, VIDEOMMMU_DISCIPLINES
from datamodules.types import VideoRecord
from rewards.evaluation.metrics import BREAKDOWNS
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


def test_registry_is_keyed_by_name_and_names_the_published_files():
    assert list(BENCHMARKS) == ["vsibench", "videommmu", "mmvu", "mvbench", "tempcompass", "videomme"]
    for name, benchmark in BENCHMARKS.items():
        assert (benchmark.name, benchmark.file) == (name, f"eval_{name}.json")


def test_scores_are_broken_down_by_every_field_that_may_hold_a_group():
    for name, benchmark in BENCHMARKS.items():
        fields = {field for group in benchmark.groups.values() for field in group}
        assert fields <= set(BREAKDOWNS[name]), name


def test_sizes_are_those_of_the_benchmarks():
    assert {name: benchmark.items for name, benchmark in BENCHMARKS.items()} == {
        "vsibench": 5130,
        "videommmu": 3 * 300,
        "mmvu": 625,
        "mvbench": 20 * 200,
        "tempcompass": 1580 + 2453 + 1503 + 2004,
        "videomme": 900 * 3,
    }
    for benchmark in BENCHMARKS.values():
        assert sum(benchmark.group_items.values()) in (0, benchmark.items)
    assert len(MVBENCH_TASKS) == 20
    assert len({subject for subjects in VIDEOMMMU_DISCIPLINES.values() for subject in subjects}) == 30


def test_the_timed_tasks_are_those_whose_rows_carry_times():
    assert BENCHMARKS["mvbench"].timed_tasks == {task for task, (_, timed) in MVBENCH_TASKS.items() if timed}


def test_groups_come_from_the_first_field_that_is_stated():
    videomme, tempcompass = BENCHMARKS["videomme"], BENCHMARKS["tempcompass"]
    assert videomme.group(record(task_type=None, question_type="OCR", duration="long"), "task") == "OCR"
    assert videomme.group(record(task_type="Counting", question_type="OCR"), "task") == "Counting"
    assert videomme.group(record(), "duration") is None
    assert tempcompass.group(record(dim="speed"), "aspect") == "speed"
    with pytest.raises(ValueError, match="MMVU is not divided by 'task'; its groups are subject"):
        BENCHMARKS["mmvu"].group(record(), "task")


@pytest.mark.parametrize("path", ["./VideoMMMU/question_only/dev_Biology_3_image.mp4", "./x/dev_Biology_3_image.mp4"])
def test_question_only_clips_are_found_by_their_path(path):
    assert path in BENCHMARKS["videommmu"].trap(record(path))
    assert BENCHMARKS["videommmu"].trap(record("./VideoMMMU/Science/dev_Biology_3.mp4")) is None
    assert BENCHMARKS["mvbench"].trap(record(path)) is None


@pytest.mark.parametrize("task", ["Action Sequence", "action_sequence"])
def test_missing_times_are_found(task):
    mvbench = BENCHMARKS["mvbench"]
    assert mvbench.trap(record(task=task, start=1.0)).startswith("end missing: MVBench's task")
    assert mvbench.trap(record(task=task)).startswith("start and end missing")
    assert mvbench.trap(record(task=task, start=0, end=3)) is None
    assert mvbench.trap(record(task="Action Antonym")) is None


def test_a_part_of_a_benchmark_is_called_so():
    (message,) = BENCHMARKS["mmvu"].size_differences([record()] * 624)
    assert message == "624 questions where MMVU has 625: the score is that of a part."
    assert BENCHMARKS["mmvu"].size_differences([record()] * 625) == []


@pytest.mark.parametrize(
    ("duration", "seconds", "fits"),
    [("short", 100, True), ("short", 200, False), ("medium", 900, True), ("long", 900, False), ("long", 3500, True)],
)
def test_videos_of_another_length_than_their_group_are_found(duration, seconds, fits):
    fault = BENCHMARKS["videomme"].fault(record(duration=duration), seconds)
    assert (fault is None) is fits
    if not fits:
        assert fault.startswith(f"the video lasts {seconds} s, but Video-MME counts it as {duration!r}")


def test_length_is_not_asked_where_it_is_not_known():
    assert BENCHMARKS["videomme"].fault(record(duration="long"), None) is None
    assert BENCHMARKS["videomme"].fault(record(), 1.0) is None
    assert "question without the lecture" in BENCHMARKS["videommmu"].fault(record("./question_only/a.mp4"), 1.0)
