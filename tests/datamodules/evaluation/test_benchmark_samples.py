"""The six benchmarks' tiny data sets: their own annotation converted, and their published files read as they are."""

import json
from pathlib import Path

import pytest

from datamodules.checks.data_check import check_data, check_rewards
from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.converters import (
    convert_mmvu,
    convert_mvbench,
    convert_tempcompass,
    convert_videomme,
    convert_videommmu,
    convert_vsibench,
)
from datamodules.media import read_media
from datamodules.prompts import PromptTemplate
from datamodules.records import RecordFile, scan
from datamodules.video.frame_sampling import FrameConfig
from rewards.accuracy import AccuracyReward
from rewards.evaluation.metrics import BREAKDOWNS
from rewards.suite import RewardSuite
from tests.datamodules.evaluation.benchmark_samples import SECONDS, BenchmarkSample, write_benchmark_sample

PROFILE = FrameConfig(num_frames=4, min_pixels=28 * 28, max_pixels=56 * 56)
PER_FILE = {
    "vsibench": lambda key, rows: convert_vsibench(rows),
    "videommmu": lambda key, rows: convert_videommmu(rows, key),
    "mmvu": lambda key, rows: convert_mmvu(rows),
    "mvbench": lambda key, rows: convert_mvbench(rows, key),
    "tempcompass": lambda key, rows: convert_tempcompass(rows, key),
    "videomme": lambda key, rows: convert_videomme(rows),
}


@pytest.fixture(scope="module", params=list(BENCHMARKS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sample(name: str, tmp_path_factory: pytest.TempPathFactory) -> BenchmarkSample:
    return write_benchmark_sample(tmp_path_factory.mktemp(name), name)


@pytest.fixture(scope="module")
def converted(name: str, sample: BenchmarkSample) -> Path:
    records = [record for key, rows in sample.annotations.items() for record in PER_FILE[name](key, rows)]
    file = sample.data_root / "converted.json"
    file.write_text(json.dumps(records))
    return file


def test_published_files_are_read_as_they_are(name: str, sample: BenchmarkSample) -> None:
    report = check_data(scan(sample.file), sample.data_root, PROFILE, progress=False)
    assert report.problems == []
    assert report.counts.total() == 4
    rewards = check_rewards(scan(sample.file), RewardSuite([AccuracyReward()]), progress=False)
    assert rewards.problems == []
    assert {finding.kind for finding in rewards.below_one} <= {"free-form"}  # one word: 2 / 3, it has no pair of words
    records = RecordFile(sample.file, sample.data_root)
    assert sample.file.name == BENCHMARKS[name].file
    assert all(BENCHMARKS[name].trap(record) is None for record in records)
    for record in records:
        question = PromptTemplate().question_text(record)
        assert [question.count(letter) for letter in ("A. red", "B. green")] in (
            [1, 1],
            [0, 0],
        )  # options once or never


def test_converted_annotations_are_the_published_questions(sample: BenchmarkSample, converted: Path) -> None:
    own, published = (RecordFile(file, sample.data_root) for file in (converted, sample.file))
    assert [record.solution for record in own] == [record.solution for record in published]
    assert [record.path for record in own] == [record.path for record in published]
    assert [record.problem_type for record in own] == [record.problem_type for record in published]
    report = check_data(scan(converted), sample.data_root, PROFILE, progress=False)
    assert report.problems == []
    assert len(set(own.problem_ids())) == 4
    rewards = check_rewards(scan(converted), RewardSuite([AccuracyReward()]), progress=False)
    assert rewards.problems == []
    assert {finding.kind for finding in rewards.below_one} <= {"free-form"}  # one word: 2 / 3, it has no pair of words


def test_groups_are_stated_by_both(name: str, sample: BenchmarkSample, converted: Path) -> None:
    benchmark = BENCHMARKS[name]
    published = RecordFile(sample.file, sample.data_root)
    for group in set(benchmark.groups) - {"subject"}:
        values = [benchmark.group(record, group) for record in RecordFile(converted, sample.data_root)]
        assert None not in values
        assert values == [benchmark.group(record, group) for record in published]


def test_the_scorer_finds_the_groups_of_converted_records(name: str, sample: BenchmarkSample, converted: Path) -> None:
    for group, fields in BENCHMARKS[name].groups.items():
        for record in RecordFile(converted, sample.data_root):
            assert any(field in BREAKDOWNS[name] and record.extra.get(field) for field in fields), group


def test_mvbench_sees_the_named_seconds_only(tmp_path: Path) -> None:
    sample = write_benchmark_sample(tmp_path, "mvbench")
    records = RecordFile(sample.file, sample.data_root)
    # 8 frames per second; the first second of two is asked about, where only red is to be seen.
    assert (records[0].extra["start"], records[0].extra["end"]) == (0, SECONDS / 2) == (0, 1)
    clip = read_media(records[0], sample.data_root, PROFILE)
    assert clip.sample_fps == 4
    centres = clip.frames[:, :, clip.frames.shape[2] // 2, clip.frames.shape[3] // 2].float()
    assert (centres[:, 0] > 150).all()
    assert (centres[:, 1:] < 110).all()
    whole = read_media(records[1], sample.data_root, PROFILE)  # Action Antonym: green, then blue
    assert whole.sample_fps == 2


def test_unknown_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'vsi' is no benchmark; choose one of vsibench, videommmu"):
        write_benchmark_sample(tmp_path, "vsi")
