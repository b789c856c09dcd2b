"""From predictions to `results.json`, to a table, and to the result files of the released evaluation script.

Every mean says how many items are behind it, how many failed, and how sure it is. Nothing here depends on time, paths
or ranks: equal predictions give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.benchmarks.benchmark import Benchmark
from datamodules.text_table import text_table
from datamodules.video.types import printable
from lightning_modules.evaluation.typed_json import read_json
from rewards.answer_format import parse_response, wrap_think
from rewards.evaluation.metrics import UNITS, Mean, Unit, aggregate, headline_names
from rewards.evaluation.predictions import Prediction, scored_items
from rewards.evaluation.scoring import ScoringRule
from rewards.evaluation.statistics import bootstrap_intervals

VERSION = 2
"""Of the form of `results.json`."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An item without an answer."""

    problem_id: str
    index: int
    """Place in the benchmark's data file, from 0."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class RuleResults:
    """A benchmark under one scoring rule."""

    unit: Unit
    """Of all means."""
    headline: list[str]
    """The means that stand for the whole benchmark."""
    scored: int
    """Items that were answered and that the rule grades."""
    failed: int
    """Items without an answer that the rule would grade."""
    ungraded: int
    """Items of a kind that the rule does not grade."""
    means: dict[str, Mean]
    """By name, the headline first."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResults:
    """A benchmark's counts and means."""

    title: str
    items: int
    """Questions of this run."""
    full_items: int
    """Questions of the full benchmark."""
    answered: int
    failed: int
    truncated: int
    well_formed: int
    notes: list[str]
    """What a reader of the scores must know about this run's data."""
    failures: list[Failure]
    scoring_rules: dict[ScoringRule, RuleResults]


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """`results.json`: the scores of a run, and what they belong to."""

    version: int = VERSION
    manifest_sha256: str
    """Identity of the run, see `manifest.identity_hash`."""
    predictions_sha256: str
    """Of `predictions.jsonl`, which these are the scores of."""
    model: str
    choice_scoring: str
    scoring_rules: list[ScoringRule]
    benchmarks: dict[str, BenchmarkResults]


def read_results(path: Path) -> RunResults:
    """The `results.json` of an earlier run.

    Raises:
        UserError: no such file, or one of another form.
    """
    remedy = "Give the folder of a finished validate run on benchmarks, or repeat the run."
    return read_json(path, RunResults, version=VERSION, remedy=remedy)


def benchmark_results(
    predictions: Sequence[Prediction], rules: Sequence[ScoringRule], notes: Mapping[str, Sequence[str]]
) -> dict[str, BenchmarkResults]:
    """Benchmark -> items, failures and, for each scoring rule, all means with intervals.

    The benchmarks are the keys of `notes`, in order: benchmark -> sentences that belong to its scores.
    """
    results = {}
    for name in notes:
        benchmark = BENCHMARKS[name]
        own = [prediction for prediction in predictions if prediction.benchmark == name]
        failures = [
            Failure(problem_id=item.problem_id, index=item.index, reason=item.failure)
            for item in own
            if item.failure is not None
        ]
        results[name] = BenchmarkResults(
            title=benchmark.title,
            items=len(own),
            full_items=benchmark.items,
            answered=len(own) - len(failures),
            failed=len(failures),
            truncated=sum(prediction.truncated is True for prediction in own),
            well_formed=sum(prediction.well_formed is True for prediction in own),
            notes=list(notes[name]),
            failures=failures,
            scoring_rules={rule: _rule_results(benchmark, rule, own) for rule in rules},
        )
    return results


def logged_values(results: RuleResults) -> dict[str, float]:
    """All means that have a value, and the numbers of items behind them, by the names of a logger's tags."""
    values = {name: mean.value for name, mean in results.means.items() if mean.value is not None}
    values |= {"scored": results.scored, "failed": results.failed}
    for name, mean in results.means.items():
        values |= {f"scored/{name}": mean.scored, f"failed/{name}": mean.failed}
    return values


def render_table(results: Mapping[str, BenchmarkResults]) -> str:
    """Plain text: one line for each headline mean, then what a reader must know, failures first."""
    rows = [("benchmark", "scoring rule", "mean", "value", "95 % interval", "scored", "failed", "no rule")]
    for benchmark in results.values():
        for rule, numbers in benchmark.scoring_rules.items():
            for name in numbers.headline:
                mean = numbers.means[name]
                counts = (str(mean.scored), str(mean.failed), str(numbers.ungraded))
                rows.append((benchmark.title, rule, name, *_value_and_interval(mean, numbers.unit), *counts))
    failures = [
        f"{benchmark.title}: {benchmark.failed:,} of {benchmark.items:,} questions failed and are in no mean, "
        f"first: {printable(benchmark.failures[0].reason)}"
        for benchmark in results.values()
        if benchmark.failures
    ]
    notes = [f"{benchmark.title}: {note}" for benchmark in results.values() for note in benchmark.notes]
    return "\n".join([*text_table(rows), *failures, *notes])


def reference_results(
    records: Sequence[Mapping[str, Any]], predictions: Sequence[Prediction], results: RuleResults
) -> dict[str, Any]:
    """One benchmark in the form that the released script writes.

    A failed item has null for output, prediction, reward and correct, and a `failure`; the script gives it reward 0.
    `final_acc` leaves it out and says how many items its means are over. The records are elements of the data file as
    they stand there, the predictions are of the same questions in the same order, the results are of `videorft`.
    """
    means = {name: mean.value for name, mean in results.means.items()}
    final = {name: means.get(name) or 0.0 for name in ("mean_acc", "mean_mra")}
    return {
        "results": [_reference_row(*pair) for pair in zip(records, predictions, strict=True)],
        "final_acc": [{**final, "scored": results.scored, "failed": results.failed}],
    }


def _rule_results(benchmark: Benchmark, rule: ScoringRule, predictions: Sequence[Prediction]) -> RuleResults:
    items = scored_items(predictions, rule)
    means = aggregate(benchmark, rule, items)
    for name, interval in bootstrap_intervals(benchmark, rule, items).items():
        means[name] = replace(means[name], low=interval.low, high=interval.high)
    headline = [name for name in headline_names(benchmark, rule) if name in means]
    failed = sum(item.score is None for item in items)
    return RuleResults(
        unit=UNITS[rule],
        headline=headline,
        scored=len(items) - failed,
        failed=failed,
        ungraded=len(predictions) - len(items),
        means={name: means[name] for name in dict.fromkeys((*headline, *means))},
    )


def _value_and_interval(mean: Mean, unit: Unit) -> tuple[str, str]:
    digits = 4 if unit == "fraction" else 2
    if mean.value is None:
        return "none", ""
    return f"{mean.value:.{digits}f}", f"{mean.low:.{digits}f} to {mean.high:.{digits}f}"


def _reference_row(record: Mapping[str, Any], prediction: Prediction) -> dict[str, Any]:
    reward = prediction.scores["videorft"]
    think = parse_response(prediction.completion or "").think
    row = {
        **record,
        "output": prediction.completion,
        "prediction": prediction.answer,
        "reward": reward,
        "correct": None if reward is None else reward == 1.0,
    }
    row |= {"process": wrap_think(think)} if think else {}
    return row | ({"failure": prediction.failure} if prediction.failure is not None else {})
