"""What it costs to sample and train a GRPO group: prompt and video once, or once per completion.

    python tests/performance/shared_prefix.py [--size small|3b|7b] [--repeats 3] [--output FILE.json] [--quick]

A group is one video prompt of P tokens with G completions of C tokens. Methods, on the same random weights:

- `repeated`: the published code (and transformers up to 5.17): pixels and prompt G times, right-padded rows, stock
  attention and vision tower, log_softmax over the whole vocabulary.
- `repeated_fast_vision`: the same with this project's vision tower.
- `vision_once`: the video encoded once and its features repeated, the prompt computed G times.
- `strongest`: the strongest ordinary code: `vision_once` with log-probabilities in this project's chunks.
- `strongest_single`: the same with a backward pass after every completion, its least memory.
- `prefix_grouper`: the package PrefixGrouper (github.com/johncaged/PrefixGrouper, arXiv 2506.05433), with this
  project's vision tower and chunks.
- `generate`: the installed transformers' `generate(num_return_sequences=G)`.
- `ours`: one packed row, one prefill, chunked log-probabilities.
- `ours_sliced`: the prompt once, a backward pass after every two completions, then one through the prompt.

Two ratios compare a method: the cost of `repeated` and that of `strongest`, each divided by the method's.

Cases: `rollout_prefill` (prompt to the logits of G first tokens), `rollout` (whole sampling), `update` (forward and
backward of all parameters, vision tower included), `logprobs` (hidden states to log-probabilities and back), `step`
(rollout and update).

Methods take turns within each repeat and medians are compared. A scenario that is run only once is timed where its
memory is measured. Seconds are the process's user time on a CPU (page faults left out, which would favor `ours`) and
wall time on a GPU. Memory is the peak beyond weights, gradients and inputs: on a CPU the resident high-water mark of a
fresh process per number (with --quick, of the whole run's process), on a GPU the allocator's. `floor_seconds` of an
update is the time that the arithmetic which the method needs would take at the speed of a large matrix product.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.performance.measure import (
    cuda_peak_mib,
    in_fresh_process,
    interleaved_seconds,
    machine,
    matmul_rate,
    resident_peak_mib,
)
from tests.performance.operations import update_operations
from tests.performance.random_models import SIZES, Models, build_models
from tests.performance.shared_prefix_cases import CASES, Scenario, build_work
from tests.performance.shared_prefix_report import plot, write_report

RESULTS = Path(__file__).parent / "results"
BOTH = ("repeated", "ours")
UPDATE_METHODS = (
    "repeated",
    "repeated_fast_vision",
    "vision_once",
    "strongest",
    "strongest_single",
    "prefix_grouper",
    "ours",
    "ours_sliced",
)
TRAINING_METHODS = ("repeated", "strongest", "strongest_single", "prefix_grouper", "ours", "ours_sliced")
GROUP_METHODS = ("repeated", "strongest", "strongest_single", "ours", "ours_sliced")
BASELINES = ("repeated", "strongest")
LARGEST_REPEATED = 32
"""Completions; twice as many take 12 GiB at size `small`."""
USUAL_TOKENS = 8 * (1024 + 256)
"""Of a group that is run as often as asked; a larger one is run less often on a CPU."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    chosen = [scenario for scenario in scenarios(options) if scenario.case in options.cases]
    models = _models(options)
    gc.collect()
    gc.freeze()  # collections between measurements then pass over the many objects of the libraries
    rate = matmul_rate(device, models.stock.dtype)
    rows: list[dict[str, Any]] = []
    report = {
        "date": date.today().isoformat(),
        "machine": machine(device),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "size": options.size,
        "dtype": str(models.stock.dtype).removeprefix("torch."),
        "gradient_checkpointing": options.gradient_checkpointing,
        "matmul_gigaops_per_second": rate / 1e9,
        "rows": rows,
    }
    output = options.output or RESULTS / ("quick.json" if options.quick else f"{_kind(device)}.json")
    for scenario in chosen:
        rows += measure(models, scenario, options, rate)
        write_report(report, output)  # a run that is stopped leaves what it has measured
    print(output.with_suffix(".md").read_text())
    plot(report, output.with_suffix(".png"))
    gc.unfreeze()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", choices=SIZES, help="small on a CPU, 7b on a GPU, demo with --quick")
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="cpu: float32; cuda: bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=3, help="fewer for larger groups on a CPU")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--prompt-lengths", nargs="*", type=int, default=[512, 2048, 4096, 8192])
    parser.add_argument("--group-sizes", nargs="*", type=int, default=[2, 4, 16, 32, 64])
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations in the backward")
    parser.add_argument("--output", type=Path, help="JSON file; Markdown and plot stand beside it")
    parser.add_argument("--quick", action="store_true", help="every case at sizes that take seconds")
    options = parser.parse_args(arguments)
    if options.size is None:
        options.size = "demo" if options.quick else ("7b" if options.device.startswith("cuda") else "small")
    return options


def scenarios(options: argparse.Namespace) -> Iterator[Scenario]:
    """Everything to measure, each once."""
    if options.quick:
        quick = Scenario(case="update", methods=BOTH, prompt_tokens=64, group_size=2, completion_tokens=8)
        yield replace(quick, methods=UPDATE_METHODS)
        yield replace(quick, unequal=True)
        yield replace(quick, case="rollout_prefill", methods=("repeated", "vision_once", "generate", "ours"))
        yield replace(quick, case="rollout", methods=("repeated", "generate", "ours"))
        yield replace(quick, case="logprobs", vocabulary=8192)
        yield replace(quick, case="step", methods=("repeated", "generate", "ours"))
        return
    base = Scenario(case="update", methods=BOTH)
    yield replace(base, methods=UPDATE_METHODS)
    yield replace(base, unequal=True, methods=TRAINING_METHODS)
    yield from (replace(base, methods=TRAINING_METHODS, prompt_tokens=p, completion_tokens=1024) for p in (1024, 256))
    for size in options.group_sizes:
        methods = GROUP_METHODS[1:] if size > LARGEST_REPEATED else GROUP_METHODS
        yield replace(base, group_size=size, methods=methods)
    for length in (1024, 4096):
        prefill = replace(base, case="rollout_prefill", prompt_tokens=length)
        yield replace(prefill, methods=("repeated", "vision_once", "generate", "ours"))
    yield replace(base, case="rollout", methods=("repeated", "generate", "ours"))
    vocabulary = max(SIZES[options.size].vocabulary, base.vocabulary)
    yield replace(base, case="logprobs", completion_tokens=512, vocabulary=vocabulary)
    yield replace(base, case="step", methods=("repeated", "generate", "ours"))
    yield from (replace(base, prompt_tokens=p) for p in options.prompt_lengths)


def measure(models: Models, scenario: Scenario, options: argparse.Namespace, rate: float) -> list[dict[str, Any]]:
    """One row per method."""
    print(f"{scenario.case} P {scenario.prompt_tokens} G {scenario.group_size} ...", file=sys.stderr, flush=True)
    on_gpu = models.device.type == "cuda"
    tokens = scenario.group_size * (max(scenario.prompt_tokens, 1024) + scenario.completion_tokens)
    repeats = options.repeats if on_gpu else max(1, round(options.repeats * min(1.0, USUAL_TOKENS / tokens)))
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float | None] = {}
    if on_gpu or options.quick or repeats > 1:
        works = build_work(models, scenario)
        # A GPU chooses kernels by shape, so it warms up with the real ones.
        interleaved_seconds(works if on_gpu else build_work(models, _shrunk(scenario)), 1, models.device)
        seconds = interleaved_seconds(works, repeats, models.device)
        if on_gpu:
            peaks = {method: cuda_peak_mib(work, models.device) for method, work in works.items()}
        elif options.quick:
            peaks = {method: resident_peak_mib(work) for method, work in works.items()}
        del works
    if not peaks:
        alone = {method: replace(scenario, methods=(method,)) for method in scenario.methods}
        costs = {method: in_fresh_process(cost_alone, one, options) for method, one in alone.items()}
        peaks = {method: peak for method, (peak, _) in costs.items()}
        seconds = seconds or {method: [once] for method, (_, once) in costs.items()}
    rows = [_row(models, scenario, method, seconds[method], peaks[method], rate) for method in scenario.methods]
    return [_with_ratios(row, rows) for row in rows]


def _shrunk(scenario: Scenario) -> Scenario:
    return replace(scenario, prompt_tokens=64, completion_tokens=8)


def _row(
    models: Models, scenario: Scenario, method: str, seconds: Sequence[float], peak: float | None, rate: float
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case": scenario.case,
        "method": method,
        "P": None if scenario.case == "logprobs" else scenario.prompt_tokens,
        "G": scenario.group_size,
        "C": None if scenario.case == "rollout_prefill" else scenario.completion_tokens,
        "V": scenario.vocabulary if scenario.case == "logprobs" else models.size.vocabulary,
        "lengths": "unequal" if scenario.unequal else "equal",
        "repeats": len(seconds),
        "out_of_memory": not seconds or peak is None,
    }
    if row["out_of_memory"]:
        return row
    row |= {"seconds": statistics.median(seconds), "peak_memory_mib": peak}
    row["tokens_per_second"] = scenario.useful_tokens / row["seconds"]
    if scenario.case == "update":
        floor = update_operations(models.size, scenario.prompt_tokens, scenario.lengths, method) / rate
        row |= {"floor_seconds": floor, "floor_fraction": floor / row["seconds"]}
    return row


def _with_ratios(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratios = {}
    for other in rows:
        if other["method"] in BASELINES and not row["out_of_memory"] and not other["out_of_memory"]:
            ratios[f"{other['method']}_time_ratio"] = other["seconds"] / row["seconds"]
            ratios[f"{other['method']}_memory_ratio"] = other["peak_memory_mib"] / row["peak_memory_mib"]
    return {**row, **ratios}


def cost_alone(scenario: Scenario, options: argparse.Namespace) -> tuple[float, float]:
    """Peak MiB and seconds of a scenario's only method, in this process."""
    torch.set_num_threads(options.threads)
    models = _models(options)
    gc.freeze()
    for work in build_work(models, _shrunk(scenario)).values():
        work()  # libraries load what they need and every parameter gets its gradient
    works = build_work(models, scenario)
    seconds: list[float] = []
    peak = resident_peak_mib(lambda: seconds.extend(*interleaved_seconds(works, 1, models.device).values()))
    return peak, seconds[0]


def _models(options: argparse.Namespace) -> Models:
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    return build_models(
        SIZES[options.size], options.device, dtype, gradient_checkpointing=options.gradient_checkpointing
    )


def _kind(device: torch.device) -> str:
    return "gpu" if device.type == "cuda" else "cpu"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
