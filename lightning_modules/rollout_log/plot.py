"""Draws what stored rollouts say about their rewards: over the steps, against length, by problem type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules.rollout_log.summary import RolloutSummary, Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID, GREY = "#1f2430", "#e3e6eb", "#c3c9d4"
PALETTE = ("#1a7f45", "#c77700", "#2f5fb3", "#8b4fb0", "#b03a6f", "#2a9d9d")
CURVE_POINTS = 200
"""Longer runs are averaged over neighboring steps."""


def plot_rollouts(summary: RolloutSummary, output: Path) -> None:
    """Draw a summary in one figure of three panels.

    Args:
        summary: what `summarize_rollouts` found.
        output: picture to write or replace; its suffix chooses the format (.png, .svg, .pdf).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors = dict(zip(summary.score_names, (INK, *_palette(len(summary.names))), strict=True))
    figure = Figure(figsize=(16, 4.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    steps, lengths, types = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    _draw_steps(steps, summary, colors)
    _draw_lengths(lengths, summary, colors)
    _draw_types(types, summary, colors)
    handles, labels = steps.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    partial = output.with_name(f".{output.name}.partial")
    figure.savefig(partial, format=output.suffix.removeprefix(".") or "png")
    partial.replace(output)


def _palette(size: int) -> list[str]:
    return [PALETTE[place % len(PALETTE)] for place in range(size)]


def _draw_steps(axes: Axes, summary: RolloutSummary, colors: Mapping[str, str]) -> None:
    _frame(axes, "Over the run", "optimizer step", "mean score")
    points = _joined(summary)
    steps = [step for step, _ in points]
    for place, (name, color) in enumerate(colors.items()):
        means = [tally.mean_scores[place] for _, tally in points]
        style = {"linewidth": 2.8} if place == 0 else {"linewidth": 1.4}
        axes.plot(steps, means, color=color, label=name, marker="o" if len(points) == 1 else None, **style)


def _joined(summary: RolloutSummary) -> list[tuple[float, Tally]]:
    """(mean step, tally) of at most `CURVE_POINTS` runs of consecutive steps."""
    steps = sorted(summary.steps)
    size = math.ceil(len(steps) / CURVE_POINTS)
    points = []
    for start in range(0, len(steps), size):
        chosen = steps[start : start + size]
        tally = Tally.empty(len(summary.score_names))
        for step in chosen:
            tally.merge(summary.steps[step])
        points.append((sum(chosen) / len(chosen), tally))
    return points


def _draw_lengths(axes: Axes, summary: RolloutSummary, colors: Mapping[str, str]) -> None:
    """Mean scores of every length bin over its middle, before bars of how many completions it has."""
    _frame(axes, "Against length", "completion tokens", "mean score")
    bins = summary.length_bins()
    counts = axes.twinx()
    counts.bar(
        [low - 0.5 for low, _, _ in bins],
        [tally.count for _, _, tally in bins],
        width=[(high - low + 1) * 0.94 for low, high, _ in bins],
        align="edge",
        color=GREY,
        alpha=0.45,
    )
    counts.set_ylabel("completions (bars)", color="#737b8c")
    counts.tick_params(colors="#737b8c")
    counts.spines[["top"]].set_visible(False)
    # The twin lies in front by default, and its bars would cover the lines.
    axes.set_zorder(counts.get_zorder() + 1)
    axes.patch.set_visible(False)
    middles = [(low + high) / 2 for low, high, _ in bins]
    for place, color in enumerate(colors.values()):
        means = [tally.mean_scores[place] for _, _, tally in bins]
        axes.plot(middles, means, color=color, marker="o", markersize=4.5, linewidth=2.2 if place == 0 else 1.4)


def _draw_types(axes: Axes, summary: RolloutSummary, colors: Mapping[str, str]) -> None:
    _frame(axes, "By problem type", "share of groups without variance, problem type", "mean score")
    kinds = sorted(summary.types)
    width = 0.8 / len(colors)
    for place, color in enumerate(colors.values()):
        left = [number - 0.4 + place * width for number in range(len(kinds))]
        means = [summary.types[kind].mean_scores[place] for kind in kinds]
        axes.bar(left, means, width=width * 0.92, align="edge", color=color)
    labels = [f"{summary.types[kind].flat_share:.0%}\n" + kind.replace(" ", "\n") for kind in kinds]
    axes.set_xticks(range(len(kinds)), labels, fontsize=9)
    axes.set_xlim(-0.6, len(kinds) - 0.4)


def _frame(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
