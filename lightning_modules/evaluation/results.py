"""From predictions to `results.json`, to a table, and to the result files of the released evaluation script.

Every mean says how many items are behind it, how many failed, and how sure it is. Nothing here depends on time, paths
or ranks: equal predictions give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.evaluation.benchmarks import BENCHMARKS
from rewards.answer_format import parse_response, wrap_think
from rewards.evaluation.metrics import aggregate
from rewards.evaluation.predictions import Prediction, metric_rows
from rewards.evaluation.scoring import Protocol
from rewards.evaluation.statistics import bootstrap_intervals

VERSION = 1
"""Of the form of `results.json`."""
UNITS: Mapping[str, str] = {"videorft": "fraction", "official": "percent"}


def benchmark_results(
    predictions: Sequence[Prediction], protocols: Sequence[Protocol], notes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Benchmark -> items, failures and, for each protocol, all means with intervals; plain JSON.

    Args:
        predictions: of the whole run.
        protocols: those of the run.
        notes: benchmark -> sentences that belong to its scores; its keys are the benchmarks, in order.
    """
    results = {}
    for name in notes:
        rows = [prediction for prediction in predictions if prediction.benchmark == name]
        failed = [row for row in rows if row.failure is not None]
        results[name] = {
            "title": BENCHMARKS[name].title,
            "items": len(rows),
            "full_items": BENCHMARKS[name].items,
            "answered": len(rows) - len(failed),
            "failed": len(failed),
            "truncated": sum(row.truncated is True for row in rows),
            "well_formed": sum(row.well_formed is True for row in rows),
            "notes": list(notes[name]),
            "failures": [{"problem_id": row.problem_id, "index": row.index, "reason": row.failure} for row in failed],
            "protocols": {protocol: _protocol_results(name, protocol, rows) for protocol in protocols},
        }
    return results


def headline_names(benchmark: str, protocol: Protocol) -> tuple[str, ...]:
    """The means that stand for the benchmark."""
    if protocol == "videorft":
        return ("mean_acc", "mean_mra")
    return ("exact_letter_accuracy",) if benchmark == "mmvu" else ("overall",)


def render_table(results: Mapping[str, Any]) -> str:
    """Plain text: one line for each headline mean, then what a reader must know, failures first."""
    rows = [("benchmark", "protocol", "mean", "value", "95 % interval", "scored", "failed", "no rule")]
    for benchmark in results.values():
        for protocol, numbers in benchmark["protocols"].items():
            for name in numbers["headline"]:
                mean = numbers["means"][name]
                counts = (str(mean["scored"]), str(mean["failed"]), str(numbers["ungraded"]))
                rows.append((benchmark["title"], protocol, name, *_value_and_interval(mean, numbers["unit"]), *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    failures = [
        f"{benchmark['title']}: {benchmark['failed']:,} of {benchmark['items']:,} questions failed and are in no mean, "
        f"first: {benchmark['failures'][0]['reason']}"
        for benchmark in results.values()
        if benchmark["failures"]
    ]
    notes = [f"{benchmark['title']}: {note}" for benchmark in results.values() for note in benchmark["notes"]]
    return "\n".join([*lines, *failures, *notes])


def reference_results(records: Sequence[Mapping[str, Any]], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """One benchmark in the form that the released script writes, under protocol `videorft`.

    A failed item has null for output, prediction, reward and correct, and a `failure`; the script gives it reward 0.
    `final_acc` leaves it out and says how many items its means are over.

    Args:
        records: elements of the data file, as they stand there.
        predictions: of the same questions, in the same order.
    """
    benchmark = predictions[0].benchmark
    rows = metric_rows(predictions, "videorft")
    means = aggregate(benchmark, "videorft", rows)
    final = {name: means.get(name, 0.0) for name in ("mean_acc", "mean_mra")}
    counts = {"scored": int(means["scored"]), "failed": int(means["failed"])}
    return {
        "results": [_reference_row(*pair) for pair in zip(records, predictions, strict=True)],
        "final_acc": [final | counts],
    }


def as_text(value: Any) -> str:
    """Indented JSON with a line feed at its end."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _protocol_results(benchmark: str, protocol: Protocol, predictions: Sequence[Prediction]) -> dict[str, Any]:
    rows = metric_rows(predictions, protocol)
    means = aggregate(benchmark, protocol, rows)
    intervals = bootstrap_intervals(benchmark, protocol, rows) if rows else {}
    names = [name.removeprefix("scored/") for name in means if name.startswith("scored/")]
    headline = [
        name
        for name in headline_names(benchmark, protocol)
        if means.get(f"scored/{name}", 0) + means.get(f"failed/{name}", 0) > 0
    ]
    ordered = [*headline, *(name for name in names if name not in headline)]
    return {
        "unit": UNITS[protocol],
        "headline": headline,
        "scored": int(means["scored"]),
        "failed": int(means["failed"]),
        "ungraded": len(predictions) - len(rows),
        "means": {
            name: {
                "value": means.get(name),
                "low": intervals[name].low if name in intervals else None,
                "high": intervals[name].high if name in intervals else None,
                "scored": int(means[f"scored/{name}"]),
                "failed": int(means[f"failed/{name}"]),
            }
            for name in ordered
            if means[f"scored/{name}"] + means[f"failed/{name}"] > 0
        },
    }


def _value_and_interval(mean: Mapping[str, Any], unit: str) -> tuple[str, str]:
    digits = 4 if unit == "fraction" else 2
    if mean["value"] is None:
        return "none", ""
    return f"{mean['value']:.{digits}f}", f"{mean['low']:.{digits}f} to {mean['high']:.{digits}f}"


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
