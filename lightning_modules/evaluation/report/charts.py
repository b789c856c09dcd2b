"""Bars and dots with intervals as inline SVG; colors come from the page's style sheet, so they follow its theme."""

from __future__ import annotations

import itertools
import math

from lightning_modules.evaluation.report.blocks import ChartRow, IntervalChart, Score
from lightning_modules.evaluation.report.markup import Markup, element, joined

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 800, 180, 150
"""In units of the drawing: whole, left of the axis, right of it."""
LEGEND_LEFT = 40.0
ROW, GROUP_GAP, TOP, BOTTOM = 20, 12, 34, 26
CELL_WIDTH, CELL_HEIGHT = 96, 12
LABEL_CHARACTERS = 26


def draw_chart(chart: IntervalChart) -> Markup:
    """The chart as an `svg` element that states its title and its numbers for who cannot see it."""
    signed = any(row.score.signed for row in chart.rows)
    low, high, step = _difference_axis(chart) if signed else (0.0, 100.0, 20.0)
    span = WIDTH - LABEL_WIDTH - VALUE_WIDTH

    def across(value: float) -> float:
        return LABEL_WIDTH + (value - low) / (high - low) * span

    series = list(dict.fromkeys(row.series for row in chart.rows))
    parts, y = [], float(TOP)
    for label, rows in itertools.groupby(chart.rows, key=lambda row: row.label):
        group = list(rows)
        middle = y + len(group) * ROW / 2
        parts.append(_text(_shortened(label), LABEL_WIDTH - 10, middle, "label", anchor="end"))
        for row in group:
            parts.append(_row(row, series.index(row.series), y + ROW / 2, across))
            y += ROW
        y += GROUP_GAP
    height = y - GROUP_GAP + BOTTOM
    ticks = [low + index * step for index in range(round((high - low) / step) + 1)]
    grid = [
        joined(
            element(
                "line",
                class_="zero" if tick == 0 else "grid",
                x1=across(tick),
                x2=across(tick),
                y1=float(TOP - 4),
                y2=height - BOTTOM + 4,
            ),
            _text(f"{tick:+g}" if signed and tick else f"{tick:g}", across(tick), height - 10, "tick", anchor="middle"),
        )
        for tick in ticks
    ]
    numbers = "; ".join(
        f"{row.label}, {row.series}: {row.score.text} {row.score.interval}".strip() for row in chart.rows
    )
    return element(
        "svg",
        _legend(series, chart.mark),
        *grid,
        *parts,
        class_="chart",
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=f"{chart.title}. {numbers}",
    )


def cell_bar(score: Score) -> Markup:
    """A bar with its interval for a cell of a table; the number stands beside it."""
    assert score.value is not None and not score.signed
    scale = CELL_WIDTH / 100
    parts = [
        element("rect", class_="track", x=0.0, y=2.0, width=float(CELL_WIDTH), height=CELL_HEIGHT - 4.0),
        element("rect", class_="bar", x=0.0, y=2.0, width=score.value * scale, height=CELL_HEIGHT - 4.0),
    ]
    if score.low is not None and score.high is not None:
        parts.append(_whisker(score.low * scale, score.high * scale, CELL_HEIGHT / 2, 3))
    view = f"0 0 {CELL_WIDTH} {CELL_HEIGHT}"
    return element("svg", *parts, class_="cell-bar", viewBox=view, aria_hidden="true")


def _row(row: ChartRow, place: int, y: float, across) -> Markup:
    if row.score.value is None:
        return _text("no item scored", across(0) + 4, y, "value faint")
    parts = []
    at = across(row.score.value)
    if row.score.signed:
        parts.append(element("circle", class_=f"dot s{place}", cx=at, cy=y, r=5))
    else:
        parts.append(
            element("rect", class_=f"bar s{place}", x=across(0), y=y - 7, width=at - across(0), height=14.0, rx=2)
        )
    if row.score.low is not None and row.score.high is not None:
        parts.append(_whisker(across(row.score.low), across(row.score.high), y, 4))
    if row.mark is not None:
        x = across(row.mark)
        parts.append(element("path", class_="mark", d=f"M{x:g} {y - 8:g}l5 8l-5 8l-5 -8z"))
    shown = _text(f"{row.score.text} {row.score.interval}".strip(), WIDTH - VALUE_WIDTH + 10, y, "value")
    return joined(*parts, shown)


def _whisker(left: float, right: float, y: float, reach: float) -> Markup:
    path = f"M{left:g} {y - reach:g}v{2 * reach:g}M{left:g} {y:g}H{right:g}M{right:g} {y - reach:g}v{2 * reach:g}"
    return element("path", class_="whisker", d=path)


def _legend(series: list[str], mark: str) -> Markup:
    parts, x = [], LEGEND_LEFT
    for place, name in enumerate(series):
        parts.append(element("rect", class_=f"bar s{place}", x=x, y=8.0, width=12.0, height=12.0, rx=2))
        parts.append(_text(name, x + 18, 14, "legend"))
        x += 34 + 7.2 * len(name)
    if mark:
        parts.append(element("path", class_="mark", d=f"M{x + 6:g} 6l5 8l-5 8l-5 -8z"))
        parts.append(_text(mark, x + 18, 14, "legend"))
    return joined(*parts)


def _text(text: str, x: float, y: float, kind: str, *, anchor: str = "start") -> Markup:
    return element("text", text, class_=kind, x=float(x), y=float(y), text_anchor=anchor, dominant_baseline="central")


def _shortened(label: str) -> str:
    return label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"


def _difference_axis(chart: IntervalChart) -> tuple[float, float, float]:
    """Low end, high end and step of an axis with zero in the middle and at most five steps to each side."""
    scores = [row.score for row in chart.rows]
    bounds = [abs(bound) for score in scores for bound in (score.value, score.low, score.high) if bound is not None]
    furthest = max(bounds, default=1.0) or 1.0
    steps = (digit * 10.0**power for power in itertools.count(-1) for digit in (1, 2, 5))
    step = next(step for step in steps if furthest <= 5 * step)
    reach = math.ceil(furthest / step) * step
    return -reach, reach, step
