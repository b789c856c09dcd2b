"""A benchmark is one file and one line: from its authors' annotation to results and report, nothing else is written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import cli
from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.evaluation.results import read_results
from rewards.evaluation.predictions import read_predictions
from tests.datamodules.evaluation.benchmark_samples import write_sample_clip
from tests.lightning_modules.evaluation.own_benchmark import COLORS

ANNOTATION = [
    {"id": "one", "colors": ["blue", "red"], "first": "red", "level": "easy"},
    {"id": "two", "colors": ["green", "red"], "first": "green", "level": "hard"},
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # restored after the test, whatever Lightning wrote there


@pytest.mark.parametrize("breakdowns", [COLORS.breakdowns, {}])
def test_from_the_annotation_to_the_report(tiny_folder, tmp_path, monkeypatch, capsys, breakdowns):
    monkeypatch.setitem(BENCHMARKS, "colors", replace(COLORS, breakdowns=breakdowns))  # the one line

    annotation, data_file = tmp_path / "annotation.jsonl", tmp_path / "eval_colors.json"
    annotation.write_text("".join(json.dumps(row) + "\n" for row in ANNOTATION))
    assert cli.main(["convert", "colors", str(annotation), f"--output={data_file}"]) == 0
    assert "2 questions in" in capsys.readouterr().out
    for number, record in enumerate(json.loads(data_file.read_text())):
        write_sample_clip(tmp_path / record["path"], number)

    command = [
        "validate",
        "--config=configs/eval/all.yaml",
        "--config=configs/trainer/cpu.yaml",
        f"--model.model_name_or_path={tiny_folder}",
        f"--model.output={tmp_path / 'run'}",
        "--model.evaluation.max_new_tokens=4",
        "--model.choice_scoring=likelihood",
        "--data.benchmarks=[colors]",
        f"--data.data_root={tmp_path}",
        "--data.num_workers=0",
        "--data.eval_frames={num_frames: 4, min_pixels: 784, max_pixels: 3136}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    ]
    assert cli.main(command) == 0, capsys.readouterr().err

    predictions = read_predictions(tmp_path / "run" / "predictions.jsonl")
    assert [(row.problem_id, row.gold, row.categories) for row in predictions] == [
        ("one", "B", {"level": "easy"} if breakdowns else {}),
        ("two", "A", {"level": "hard"} if breakdowns else {}),
    ]
    right = [row.answer == row.gold for row in predictions]
    results = read_results(tmp_path / "run" / "results.json").benchmarks["colors"]
    assert (results.title, results.items, results.full_items, results.notes) == ("Colors", 2, 2, [])
    official = results.scoring_rules["official"]
    assert official.headline == ["colors_accuracy"]
    levels = {"level/easy": 100.0 * right[0], "level/hard": 100.0 * right[1]} if breakdowns else {}
    means = {name: mean.value for name, mean in official.means.items()}
    assert means == {"colors_accuracy": 50.0 * sum(right), **levels}
    report = (tmp_path / "run" / "report.md").read_text()
    assert all(text in report for text in ("Colors", COLORS.notes))
    assert ("By level" in report) == bool(breakdowns)
