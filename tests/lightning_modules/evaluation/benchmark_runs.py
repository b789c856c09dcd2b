"""Short benchmark runs: tiny model, tiny data sets, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from datamodules.evaluation.benchmark_datamodule import BenchmarkDataModule
from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.benchmark_module import BenchmarkModule
from lightning_modules.rollouts.types import SamplingConfig
from tests.conftest import DEMO_TEMPLATE, SMALL_PROFILE

SAMPLING = SamplingConfig(max_new_tokens=6, temperature=0.01, top_p=0.001)
REFERENCE_FILES = tuple(f"reference/eval_{name}_output.json" for name in BENCHMARKS)
RESULT_FILES = ("predictions.jsonl", "results.json", "report.md", "report.html", *REFERENCE_FILES)


def benchmark_data_module(model: Path, root: Path, **options: Any) -> BenchmarkDataModule:
    arguments = {
        "benchmarks": list(BENCHMARKS),
        "eval_batch_size": 3,  # four questions a benchmark: a batch of three and one of one
        "eval_frames": SMALL_PROFILE,
        "prompt": DEMO_TEMPLATE,
        "num_workers": 0,
        **options,
    }
    return BenchmarkDataModule(model_name_or_path=str(model), data_root=str(root), **arguments)


def benchmark_module(model: Path, output: Path, **options: Any) -> BenchmarkModule:
    return BenchmarkModule(model_name_or_path=str(model), output=str(output), evaluation=SAMPLING, **options)


def trainer(**options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", devices=1, **{"logger": False, **quiet, **options})


def evaluate(
    module: BenchmarkModule, data: BenchmarkDataModule, *, stage: str = "validate", **options: Any
) -> L.Trainer:
    run = trainer(**options)
    getattr(run, stage)(module, datamodule=data, verbose=False)
    return run


def bytes_of(folder: Path, files: tuple[str, ...] = RESULT_FILES) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files}
