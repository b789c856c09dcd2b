"""Benchmark questions in fixed batches; what is refused before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import cli
from datamodules.evaluation.benchmark_datamodule import BenchmarkDataModule, ItemKey
from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.prompts import PromptTemplate
from tests.conftest import DEMO_TEMPLATE, SMALL_PROFILE

CONFIGS = Path(__file__).parents[3] / "configs"


def data_module(model, root, **options):
    arguments = {"eval_frames": SMALL_PROFILE, "prompt": DEMO_TEMPLATE, "num_workers": 0, **options}
    return BenchmarkDataModule(model_name_or_path=str(model), data_root=str(root), **arguments)


def test_batches_do_not_cross_benchmarks(tiny_folder, benchmark_data):
    data = data_module(tiny_folder, benchmark_data, benchmarks=["videomme", "mmvu"], eval_batch_size=3)
    data.setup("validate")
    assert data.batches() == [
        [ItemKey("videomme", 0), ItemKey("videomme", 1), ItemKey("videomme", 2)],
        [ItemKey("videomme", 3)],
        [ItemKey("mmvu", 0), ItemKey("mmvu", 1), ItemKey("mmvu", 2)],
        [ItemKey("mmvu", 3)],
    ]
    assert [key for batch in data.batches() for key in batch] == data.keys() == [key for key, _ in data.items()]


def test_a_limit_counts_for_each_benchmark(tiny_folder, benchmark_data):
    data = data_module(tiny_folder, benchmark_data, benchmarks=["videomme", "mmvu"], limit=1)
    data.setup("test")
    assert data.keys() == [ItemKey("videomme", 0), ItemKey("mmvu", 0)]


class Ranks:
    """What the loader asks of a trainer."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size = rank, world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("finished", [0, 3, 8])
def test_ranks_share_the_unfinished_batches(tiny_folder, benchmark_data, world_size, finished):
    data = data_module(tiny_folder, benchmark_data, benchmarks=["videomme", "mmvu"], eval_batch_size=1)
    data.setup("validate")
    done = frozenset(data.keys()[:finished])
    data.skip(done)
    seen = []
    for rank in range(world_size):
        data.trainer = Ranks(rank, world_size)
        loader = data.val_dataloader()
        assert len(loader) >= 1
        seen += [item.key for batch in loader for item in batch.items]
    assert sorted(seen) == sorted(set(data.keys()) - done)


def test_a_batch_that_is_finished_in_part_is_asked_as_a_whole(tiny_folder, benchmark_data):
    data = data_module(tiny_folder, benchmark_data, benchmarks=["mmvu"], eval_batch_size=2)
    data.setup("validate")
    data.skip(frozenset(data.keys()[:3]))
    data.trainer = Ranks(0, 1)
    assert [[item.key.index for item in batch.items] for batch in data.val_dataloader()] == [[2, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmarks": ["mvbnech"]}, "the benchmark 'mvbnech'; there are vsibench, "),
        ({"benchmarks": []}, r"benchmarks is \[\]; name at least one"),
        ({"benchmarks": ["mmvu", "mmvu"]}, "each once"),
        ({"benchmarks": ["mmvu"], "files": {"videomme": "x.json"}}, "names 'videomme', which is not among"),
        ({"benchmarks": ["mmvu"], "files": {"x": "x.json"}}, "the benchmark 'x'"),
        ({"benchmarks": ["mmvu"], "limit": 0}, "limit is 0; it must be >= 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data_module("model", "root", **options)


def test_prompts_that_cannot_be_built_are_refused_with_their_records(tiny_folder, benchmark_data):
    template = PromptTemplate(question="{problem}")
    data = data_module(tiny_folder, benchmark_data, benchmarks=["mmvu"], prompt=template)
    data.setup("validate")
    with pytest.raises(ValueError, match=r"4 questions cannot be evaluated:\n  .*eval_mmvu\.json:1 \(problem_id 0\)"):
        data.check_records(["videorft"])


def test_parts_and_mistaken_clips_are_noted_beside_the_scores(tiny_folder, benchmark_data, tmp_path):
    records = json.loads((benchmark_data / "eval_videommmu.json").read_text())
    records[2]["path"] = "./VideoMMMU/question_only/test_Finance_12_image.mp4"
    file = tmp_path / "eval_videommmu.json"
    file.write_text(json.dumps(records))
    data = data_module(tiny_folder, benchmark_data, benchmarks=["videommmu"], files={"videommmu": str(file)})
    data.setup("validate")
    size, defect = data.check_records(["videorft"])["videommmu"]
    assert size.startswith("4 questions where VideoMMMU has 900")
    assert defect.startswith("1 of 4 questions are not the benchmark's; first: path is './VideoMMMU/question_only/")


@pytest.fixture
def clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # restored after the test, whatever Lightning wrote there


def test_check_data_finds_the_faults_of_benchmark_files(
    tiny_folder, benchmark_data, tmp_path, capsys, clean_environment
):
    root = tmp_path / "data"
    (root / "VideoMMMU").mkdir(parents=True)
    for name in ("VideoMMMU", "Video-MME", "MVBench"):
        shutil.copytree(benchmark_data / name, root / name, dirs_exist_ok=True)
    files = {name: json.loads((benchmark_data / f"eval_{name}.json").read_text()) for name in ("videommmu", "mvbench")}
    clip = root / files["videommmu"][0]["path"]
    clip.with_name("dev_Biology_3_image.mp4").write_bytes(clip.read_bytes())
    files["videommmu"][0]["path"] = "./VideoMMMU/Science/dev_Biology_3_image.mp4"
    (root / files["videommmu"][1]["path"]).unlink()
    files["mvbench"][0] |= {"start": 50.0, "end": 60.0}
    del files["mvbench"][2]["end"]
    for name, records in files.items():
        (root / f"eval_{name}.json").write_text(json.dumps(records))
    shutil.copy(benchmark_data / "eval_videomme.json", root)
    command = [
        *("check", "data", "--stage=validate", f"--config={CONFIGS / 'eval' / 'all.yaml'}"),
        f"--config={tmp_path / 'own.yaml'}",
    ]
    own = {
        "model": {"init_args": {"model_name_or_path": str(tiny_folder)}},
        "data": {
            "init_args": {
                "benchmarks": ["videommmu", "mvbench", "videomme"],
                "data_root": str(root),
                "eval_frames": {"num_frames": 4, "min_pixels": 784, "max_pixels": 3136},
            }
        },
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(SystemExit) as leaving:
        cli.main(command)
    assert leaving.value.code == 1
    said = capsys.readouterr().out
    # Sound are two records of VideoMMMU, two of MVBench and Video-MME's short one.
    assert "12 valid records, media of 5 checked and sound" in said
    assert "not the data of the benchmark (5)" in said
    assert "this clip shows the question's picture alone" in said
    assert "end missing: MVBench's task 'Action Localization'" in said
    assert said.count("the video lasts 2 s, but Video-MME counts it as") == 3
    assert "media missing or outside the data root (1)" in said
    assert "start or end beyond the video (1)" in said


@pytest.mark.parametrize("path", sorted((CONFIGS / "eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_differ_in_nothing_but_their_benchmarks(path):
    def without(path):
        tree = yaml.safe_load(path.read_text())
        given = tree["data"]["init_args"].pop("benchmarks")
        output = tree["model"]["init_args"].pop("output")
        assert output == tree["trainer"].pop("default_root_dir") == f"runs/eval/{path.stem}"
        return given, tree

    every, shared = without(CONFIGS / "eval" / "all.yaml")
    given, own = without(path)
    assert own == shared
    assert given == ([path.stem] if path.stem in BENCHMARKS else every)
    assert set(every) <= set(BENCHMARKS)


def test_the_configurations_have_the_published_frames_and_decoding():
    tree = yaml.safe_load((CONFIGS / "eval" / "all.yaml").read_text())
    assert tree["model"]["init_args"]["evaluation"] == {"max_new_tokens": 1024, "temperature": 0.01, "top_p": 0.001}
    profile = tree["data"]["init_args"]["eval_frames"]
    assert (profile["num_frames"], profile["min_pixels"], profile["max_pixels"]) == (32, 256 * 28 * 28, 256 * 28 * 28)
