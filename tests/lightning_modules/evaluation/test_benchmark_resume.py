"""Interrupted, divided and repeated benchmark runs end in the bytes of one that was left alone."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.benchmark_module import BenchmarkModule
from rewards.evaluation.predictions import read_predictions
from tests.datamodules.evaluation.benchmark_samples import converted_example
from tests.lightning_modules.evaluation.benchmark_runs import (
    SAMPLING,
    benchmark_data_module,
    benchmark_module,
    bytes_of,
    evaluate,
)

ROOT = Path(__file__).parents[3]
QUESTIONS = [len(converted_example(benchmark)) for benchmark in BENCHMARKS.values()]
BATCHES = sum(math.ceil(questions / 3) for questions in QUESTIONS)
"""The questions of each benchmark in batches of three."""


@pytest.fixture(scope="module")
def expected(tiny_folder, benchmark_data, tmp_path_factory) -> dict[str, bytes]:
    """Result files of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(benchmark_module(tiny_folder, folder), benchmark_data_module(tiny_folder, benchmark_data))
    return bytes_of(folder)


class Interrupted(BenchmarkModule):
    """Ends with an error at its `last` batch, before or after that is written."""

    def __init__(self, *, last: int, written: bool, **options) -> None:
        super().__init__(**options)
        self.last, self.written, self.batches = last, written, 0

    def _answer(self, batch):
        self.batches += 1
        if self.batches == self.last and not self.written:
            raise RuntimeError("the machine went away")
        rows = super()._answer(batch)
        if self.batches == self.last:
            raise RuntimeError("the machine went away")
        return rows


@pytest.mark.parametrize("seed", range(3))
def test_five_interruptions_change_no_byte(tiny_folder, benchmark_data, expected, tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(5):
        module = Interrupted(
            last=draw.randint(1, 3),
            written=draw.random() < 0.5,
            model_name_or_path=str(tiny_folder),
            output=str(tmp_path),
            evaluation=SAMPLING,
        )
        with pytest.raises(RuntimeError, match="went away"):
            evaluate(module, benchmark_data_module(tiny_folder, benchmark_data))
        part = tmp_path / "predictions.rank0.partial.jsonl"
        part.write_bytes(part.read_bytes()[: draw.randrange(part.stat().st_size + 1)])
        assert not (tmp_path / "predictions.jsonl").exists()
    started = json.loads((tmp_path / "manifest.json").read_text())["environment"]["started"]
    evaluate(benchmark_module(tiny_folder, tmp_path), benchmark_data_module(tiny_folder, benchmark_data))
    assert bytes_of(tmp_path) == expected
    assert json.loads((tmp_path / "manifest.json").read_text())["environment"]["started"] == started


def test_answered_questions_are_not_asked_again(tiny_folder, benchmark_data, expected, tmp_path):
    data = benchmark_data_module(tiny_folder, benchmark_data)
    run = evaluate(benchmark_module(tiny_folder, tmp_path), data, limit_val_batches=5)
    assert not (tmp_path / "predictions.jsonl").exists()
    assert not (tmp_path / "results.json").exists()
    # Five batches of three and one: all of the first two benchmarks, three questions of the third.
    assert run.callback_metrics.keys() == {
        "val/vsibench/videorft/mean_acc",
        "val/vsibench/videorft/mean_mra",
        "val/vsibench/official/overall",
        "val/videommmu/videorft/mean_acc",
        "val/videommmu/official/overall",
        "val/mmvu/videorft/mean_acc",
        "val/mmvu/official/exact_letter_accuracy",
    }
    module = Interrupted(
        last=BATCHES - 5 + 1,  # one more than are left
        written=False,
        model_name_or_path=str(tiny_folder),
        output=str(tmp_path),
        evaluation=SAMPLING,
    )
    evaluate(module, benchmark_data_module(tiny_folder, benchmark_data))
    assert module.batches == BATCHES - 5
    assert bytes_of(tmp_path) == expected


def test_a_finished_run_is_not_answered_again(tiny_folder, benchmark_data, expected, tmp_path):
    evaluate(benchmark_module(tiny_folder, tmp_path), benchmark_data_module(tiny_folder, benchmark_data))
    module = Interrupted(
        last=2,  # the empty batch, which lets Lightning run, is the first
        written=False,
        model_name_or_path=str(tiny_folder),
        output=str(tmp_path),
        evaluation=SAMPLING,
    )
    evaluate(module, benchmark_data_module(tiny_folder, benchmark_data))
    assert module.batches == 1
    assert bytes_of(tmp_path) == expected


def test_a_loader_process_changes_no_byte(tiny_folder, benchmark_data, expected, tmp_path):
    data = benchmark_data_module(tiny_folder, benchmark_data, num_workers=1)
    evaluate(benchmark_module(tiny_folder, tmp_path), data)
    assert bytes_of(tmp_path) == expected


def test_other_settings_do_not_mix(tiny_folder, benchmark_data, tmp_path):
    data = {"benchmarks": ["mmvu"]}
    module = benchmark_module(tiny_folder, tmp_path)
    evaluate(module, benchmark_data_module(tiny_folder, benchmark_data, **data), limit_val_batches=1)
    with pytest.raises(ValueError, match=r"(?s)differs from this one:\n  settings\.seed: 0 then, 1 now\n.*output"):
        module = benchmark_module(tiny_folder, tmp_path, seed=1)
        evaluate(module, benchmark_data_module(tiny_folder, benchmark_data, **data))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"other library versions:\n  torch: \"1\.0\" then, "):
        module = benchmark_module(tiny_folder, tmp_path)
        evaluate(module, benchmark_data_module(tiny_folder, benchmark_data, **data))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json that says how they were made"):
        module = benchmark_module(tiny_folder, tmp_path)
        evaluate(module, benchmark_data_module(tiny_folder, benchmark_data, **data))


def command_line(model: Path, data: Path, output: Path, *options: str) -> list[str]:
    return [
        "cli.py",
        "validate",
        "--config=configs/eval/all.yaml",
        "--config=configs/trainer/cpu.yaml",
        f"--model.model_name_or_path={model}",
        f"--model.output={output}",
        "--model.evaluation.max_new_tokens=24",
        "--model.dtype=float32",
        f"--data.data_root={data}",
        "--data.eval_batch_size=3",
        "--data.num_workers=1",
        "--data.eval_frames={num_frames: 4, min_pixels: 784, max_pixels: 3136}",
        f"--trainer.default_root_dir={output}",
        "--trainer.enable_progress_bar=false",
        "--trainer.logger=false",
        *options,
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def completed(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def one_process(tiny_folder, benchmark_data, tmp_path_factory) -> dict[str, bytes]:
    """Result files of the command line on one rank, left alone."""
    folder = tmp_path_factory.mktemp("one")
    completed(sys.executable, *command_line(tiny_folder, benchmark_data, folder))
    return bytes_of(folder)


def rows_on_disk(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("predictions*.jsonl"))


@pytest.mark.slow
def test_five_kills_of_the_process_change_no_byte(tiny_folder, benchmark_data, one_process, tmp_path):
    draw = random.Random(0)
    total = sum(QUESTIONS)
    points = sorted(draw.sample(range(1, total), 5))
    reached = []
    for point in points:
        command = [sys.executable, *command_line(tiny_folder, benchmark_data, tmp_path)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while rows_on_disk(tmp_path) < point and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(rows_on_disk(tmp_path))
    assert all(rows >= point for rows, point in zip(reached, points, strict=True))
    assert sum(rows < total for rows in reached) >= 3, f"too few kills came before the end: {reached}"
    completed(sys.executable, *command_line(tiny_folder, benchmark_data, tmp_path))
    assert bytes_of(tmp_path) == one_process


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "{class_path: lightning_modules.training.strategies.FSDP2Strategy}"])
def test_two_ranks_give_the_bytes_of_one(tiny_folder, benchmark_data, one_process, tmp_path, strategy):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
    completed(sys.executable, *launch, *command_line(tiny_folder, benchmark_data, tmp_path, *options))
    assert bytes_of(tmp_path) == one_process
    assert json.loads((tmp_path / "manifest.json").read_text())["environment"]["ranks"] == 2
    assert not list(tmp_path.glob("*.partial.jsonl"))


@pytest.mark.slow
def test_two_ranks_go_on_where_one_stopped(tiny_folder, benchmark_data, one_process, tmp_path):
    completed(sys.executable, *command_line(tiny_folder, benchmark_data, tmp_path, "--trainer.limit_val_batches=5"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    completed(sys.executable, *launch, *command_line(tiny_folder, benchmark_data, tmp_path, *options))
    assert bytes_of(tmp_path) == one_process
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == sum(QUESTIONS)
