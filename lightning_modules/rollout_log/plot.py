"""Draws what stored rollouts say about their rewards: over the steps, against length, by problem type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.video.types import printable
from lightning_modules.pictures.figures import INK, panel, saved_figure, series_colors
from lightning_modules.rollout_log.summary import RolloutSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS, BAR_LABELS = "#c3c9d4", "#737b8c"


def plot_rollouts(summary: RolloutSummary, output: Path) -> None:
    """Draw a summary in one figure of three panels; the suffix of `output` chooses the format (.png, .svg, .pdf)."""
    colors = [INK, *series_colors(len(summary.names))]
    with saved_figure(output, width=16, height=4.8) as figure:
        steps, lengths, types = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        _draw_steps(steps, summary, colors)
        _draw_lengths(lengths, summary, colors)
        _draw_types(types, summary, colors)
        figure.legend(*steps.get_legend_handles_labels(), loc="outside lower center", ncols=len(colors), frameon=False)


def _draw_steps(axes: Axes, summary: RolloutSummary, colors: Sequence[str]) -> None:
    panel(axes, "Over the run", "optimizer step", "mean score")
    for place, (name, color) in enumerate(zip(summary.score_names, colors, strict=True)):
        axes.plot(
            [step for step, _ in summary.steps],
            [means.scores[place] for _, means in summary.steps],
            color=color,
            label=printable(name),
            linewidth=1.4 if place else 2.8,
            marker="o" if len(summary.steps) == 1 else None,
        )


def _draw_lengths(axes: Axes, summary: RolloutSummary, colors: Sequence[str]) -> None:
    """Mean scores of every length bin over its middle, before bars of how many completions it has."""
    panel(axes, "Against length", "completion tokens", "mean score")
    middles = [(low + high) / 2 for low, high, _ in summary.lengths]
    widths = [(high - low + 1) * 0.94 for low, high, _ in summary.lengths]
    counts = axes.twinx()
    counts.bar(middles, [means.count for *_, means in summary.lengths], width=widths, color=BARS, alpha=0.45)
    counts.set_ylabel("completions (bars)", color=BAR_LABELS)
    counts.tick_params(colors=BAR_LABELS)
    counts.spines[["top"]].set_visible(False)
    # The twin lies in front by default, and its bars would cover the lines.
    axes.set_zorder(counts.get_zorder() + 1)
    axes.patch.set_visible(False)
    for place, color in enumerate(colors):
        scores = [means.scores[place] for *_, means in summary.lengths]
        axes.plot(middles, scores, color=color, marker="o", markersize=4.5, linewidth=1.4 if place else 2.2)


def _draw_types(axes: Axes, summary: RolloutSummary, colors: Sequence[str]) -> None:
    panel(axes, "By problem type", "problem type (groups without variance)", "mean score")
    width = 0.8 / len(colors)
    for place, color in enumerate(colors):
        left = [number - 0.4 + place * width for number in range(len(summary.types))]
        scores = [means.scores[place] for means in summary.types.values()]
        axes.bar(left, scores, width=width * 0.92, align="edge", color=color)
    labels = ["\n".join([*printable(kind).split(), f"{means.flat:.0%}"]) for kind, means in summary.types.items()]
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    axes.set_xlim(-0.6, len(labels) - 0.4)
