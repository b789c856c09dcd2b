"""The examples of all benchmarks, converted, and published files, which are read as they are."""

import json

import pytest

from datamodules.checks.data_check import MediaCheck, check_data, check_rewards
from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.media import read_media
from datamodules.prompts import PromptTemplate
from datamodules.records import RecordFile, scan
from datamodules.video.frame_sampling import FrameConfig
from rewards.accuracy import AccuracyReward
from rewards.options import option_letters
from rewards.suite import RewardSuite
from tests.datamodules.evaluation.benchmark_examples import EXAMPLES
from tests.datamodules.evaluation.benchmark_samples import (
    SECONDS,
    converted_example,
    write_benchmark_sample,
    write_sample_clip,
)

PROFILE = FrameConfig(num_frames=4, min_pixels=28 * 28, max_pixels=56 * 56)
OPTIONS = ["A. red", "B. green", "C. blue", "D. yellow"]


def published(problem, solution, path, **fields):
    """A record as the published data files hold it."""
    record = {"problem_id": 0, "problem": problem, "solution": f"<answer>{solution}</answer>", "path": path}
    return {**record, "data_type": "video", "problem_type": "multiple choice", "options": [], **fields}


ASKED = "Which color appears first?"
INLINE = "\n".join((ASKED, *OPTIONS))
PUBLISHED = {
    "videommmu": published(INLINE, "A", "./VideoMMMU/Science/dev_Biology_3.mp4", original_question_type="Perception"),
    "mmvu": published(ASKED, "A", "./MMVU/videos/Art/0.mp4", options=[*OPTIONS, "E. white"]),
    "tempcompass": published(INLINE, "A", "./TempCompass/videos/103440.mp4", options=None, dim="order"),
    "videomme": published(ASKED, "A", "./Video-MME/data/a.mp4", options=[f"{option}." for option in OPTIONS]),
}
"""Options inside the question, listed, null, and with full stops."""


def check(file, root):
    report = check_data(scan(file), MediaCheck(data_root=root, config=PROFILE))
    assert report.problems == []
    rewards = check_rewards(scan(file), RewardSuite([AccuracyReward()]))
    assert rewards.problems == []
    assert {finding.kind for finding in rewards.below_one} <= {"free-form"}  # one word: 2 / 3, it has no pair of words


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_as_they_are(name, tmp_path):
    file = tmp_path / BENCHMARKS[name].file
    file.write_text(json.dumps([PUBLISHED[name]]))
    write_sample_clip(tmp_path / PUBLISHED[name]["path"], 0)
    check(file, tmp_path)
    (record,) = RecordFile(file, tmp_path)
    assert BENCHMARKS[name].defect(record, SECONDS) is None
    assert PromptTemplate().question_text(record).count("B. green") == 1  # listed or in the question, not both
    assert option_letters(record.options, record.problem, where="")[:4] == ("A", "B", "C", "D")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_examples_become_sound_records(name, tmp_path):
    benchmark = BENCHMARKS[name]
    file = write_benchmark_sample(tmp_path, benchmark)
    check(file, tmp_path)
    converted = converted_example(benchmark)
    records = list(RecordFile(file, tmp_path))
    assert len({record["problem_id"] for record in converted}) == len(records) >= 2
    assert all(benchmark.defect(record) is None for record in records)
    assert set(EXAMPLES[name]) <= set(benchmark.parts or [""])
    first = next(iter(benchmark.breakdowns))
    assert None not in [benchmark.category(record, first) for record in records]


def test_mvbench_sees_the_named_seconds_only(tmp_path):
    records = RecordFile(write_benchmark_sample(tmp_path, BENCHMARKS["mvbench"]), tmp_path)
    # 8 frames per second; the first second of two is asked about, where only red is to be seen.
    assert (records[0].extra["start"], records[0].extra["end"]) == (0, SECONDS / 2) == (0, 1)
    clip = read_media(records[0], tmp_path, PROFILE)
    assert clip.sample_fps == 4
    centers = clip.frames[:, :, clip.frames.shape[2] // 2, clip.frames.shape[3] // 2].float()
    assert (centers[:, 0] > 150).all()
    assert (centers[:, 1:] < 110).all()
    whole = read_media(records[1], tmp_path, PROFILE)  # Action Antonym: green, then blue
    assert whole.sample_fps == 2
