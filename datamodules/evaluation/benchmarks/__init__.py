"""All benchmarks; each is one file here and one line below.

A benchmark is evaluated on a data file of records: the published `eval_*.json` as it is (Video-R1-eval on Hugging
Face), or one made from the benchmark's own annotation by `python cli.py convert`.
"""

from __future__ import annotations

from datamodules.evaluation.benchmarks.benchmark import Benchmark
from datamodules.evaluation.benchmarks.mmvu import MMVU
from datamodules.evaluation.benchmarks.mvbench import MVBENCH
from datamodules.evaluation.benchmarks.tempcompass import TEMPCOMPASS
from datamodules.evaluation.benchmarks.videomme import VIDEOMME
from datamodules.evaluation.benchmarks.videommmu import VIDEOMMMU
from datamodules.evaluation.benchmarks.vsibench import VSIBENCH

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (VSIBENCH, VIDEOMMMU, MMVU, MVBENCH, TEMPCOMPASS, VIDEOMME)
}
