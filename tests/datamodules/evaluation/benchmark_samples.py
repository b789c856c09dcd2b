"""Tiny data sets of the benchmarks: the example of each, converted, and a generated video for every question."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record
from datamodules.synthetic.dataset import ORDER_COLORS
from datamodules.synthetic.scene import FRAMES, FRAMES_PER_SECOND, Flash, Scene, render, write_clip
from tests.datamodules.evaluation.benchmark_examples import EXAMPLES

SECONDS = FRAMES / FRAMES_PER_SECOND
"""Length of each video."""


def write_benchmark_sample(output: Path, benchmark: Benchmark) -> Path:
    """Write a benchmark's data file with the questions of its `EXAMPLES`, and their videos, below `output`.

    Question k is about a video whose first color is number k of `ORDER_COLORS`. As in the published files, its
    `problem_id` is k.

    Returns:
        The data file; `output` is the data root.
    """
    records = [{**record, "problem_id": number} for number, record in enumerate(converted_example(benchmark))]
    for number, record in enumerate(records):
        write_sample_clip(output / record["path"], number)
    file = output / benchmark.file
    file.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return file


def converted_example(benchmark: Benchmark) -> list[Record]:
    """The records that the benchmark's converter makes of its `EXAMPLES`."""
    return [
        record
        for part, content in EXAMPLES[benchmark.name].items()
        for record in benchmark.convert(content, *([part] if part else []))
    ]


def write_sample_clip(path: Path, number: int) -> None:
    """A video of two seconds: a square of color `number` in the first half, of the next color in the second."""
    middle = FRAMES // 2
    spans = ((0, middle, ORDER_COLORS[number % 4]), (middle, FRAMES, ORDER_COLORS[(number + 1) % 4]))
    flashes = tuple(
        Flash(start=start, stop=stop, color=color, shape="square", center=(0.5, 0.5), radius=0.2)
        for start, stop, color in spans
    )
    background = np.random.default_rng(number).integers(0, 50, size=3).tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, render(Scene(background=tuple(background), flashes=flashes)))
