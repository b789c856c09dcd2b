"""The measurements of `shared_prefix` as JSON, Markdown and a picture."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
SIGNIFICANT_DIGITS = 4
COLUMNS = {
    "case": "case",
    "method": "method",
    "P": "P",
    "G": "G",
    "C": "C",
    "lengths": "lengths",
    "seconds": "seconds",
    "repeated_time_ratio": "repeated / this, time",
    "strongest_time_ratio": "strongest / this, time",
    "peak_memory_mib": "peak MiB",
    "repeated_memory_ratio": "repeated / this, memory",
    "strongest_memory_ratio": "strongest / this, memory",
    "tokens_per_second": "tokens / s",
    "floor_fraction": "floor / seconds",
    "repeats": "repeats",
}
COLORS = {
    "repeated": "tab:gray",
    "strongest": "tab:orange",
    "strongest_single": "tab:red",
    "ours": "tab:blue",
    "ours_sliced": "tab:green",
}
"""Methods of the picture."""


def write_report(report: Mapping[str, Any], output: Path) -> None:
    """Write `output` and, with the same stem beside it, the Markdown table."""
    rounded = {**report, "rows": [{key: _rounded(value) for key, value in row.items()} for row in report["rows"]]}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rounded, indent=1) + "\n")
    output.with_suffix(".md").write_text(markdown(rounded))


def _rounded(value: Any) -> Any:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def markdown(report: Mapping[str, Any]) -> str:
    """The table below what is needed to read it."""
    checkpointing = "with" if report["gradient_checkpointing"] else "without"
    lines = [
        "# Cost of a GRPO group",
        "",
        f"{report['date']}, {report['machine']}, torch {report['torch']}, transformers {report['transformers']}. "
        f"Model size `{report['size']}` with random weights in {report['dtype']}, {checkpointing} gradient "
        f"checkpointing; a large matrix product reaches {report['matmul_gigaops_per_second']:.4g} billion operations "
        "per second. P prompt tokens, G completions, C tokens of the longest one. What the cases, methods and columns "
        "mean is explained at the top of `tests/performance/shared_prefix.py`, which wrote this file.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(_cell(row, key) for key in COLUMNS) + " |" for row in report["rows"]]
    return "\n".join(lines) + "\n"


def _cell(row: Row, key: str) -> str:
    if key == "seconds" and row["out_of_memory"]:
        return "out of memory"
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1000 else f"{value:.0f}"
    return str(value)


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Time and memory of an update against prompt length and group size."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [r for r in report["rows"] if r["case"] == "update" and r["lengths"] == "equal" and not r["out_of_memory"]]
    if not rows:
        return
    fixed = rows[0]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.5), sharey="row", layout="constrained")
    for column, (varied, held) in enumerate((("P", "G"), ("G", "P"))):
        series = [row for row in rows if row[held] == fixed[held] and row["C"] == fixed["C"]]
        for line, quantity in enumerate(("seconds", "peak_memory_mib")):
            _draw(axes[line][column], series, varied, quantity)
        axes[0][column].set_title(f"{held} = {fixed[held]}, C = {fixed['C']}")
        axes[1][column].set_xlabel({"P": "prompt tokens P", "G": "completions G"}[varied])
    axes[0][0].set_ylabel("seconds per update")
    axes[1][0].set_ylabel("peak MiB beyond weights and gradients")
    axes[0][1].legend(fontsize=8)
    figure.suptitle(f"Update of one GRPO group, size {report['size']}: {report['machine']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(axes: Any, rows: Sequence[Row], varied: str, quantity: str) -> None:
    for method, color in COLORS.items():
        if points := sorted((row[varied], row[quantity]) for row in rows if row["method"] == method):
            axes.plot(*zip(*points, strict=True), marker="o", color=color, label=method)
    ticks = sorted({row[varied] for row in rows})
    axes.set(xscale="log", yscale="log", xticks=ticks, xticklabels=ticks)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
