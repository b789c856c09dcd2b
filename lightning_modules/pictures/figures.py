"""What all figures share: colors, the look of a panel, and a file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREEN, BLUE, ORANGE, GRAY = "#1f2430", "#1a7f45", "#2f5fb3", "#c77700", "#8a91a0"
_SERIES = (GREEN, ORANGE, BLUE, "#8b4fb0", "#b03a6f", "#2a9d9d")


def series_colors(count: int) -> list[str]:
    """A color for each of `count` curves; after six they begin again."""
    return [_SERIES[place % len(_SERIES)] for place in range(count)]


@contextmanager
def saved_figure(output: Path, *, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches to draw into, saved when the block ends.

    The suffix of `output` chooses the format (.png, .svg, .pdf). Names are drawn as they are: two dollar signs in one
    are no formula.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height), dpi=120, layout=ConstrainedLayoutEngine(wspace=0.05))
        yield figure
        with whole_file(output, "wb") as file:
            figure.savefig(file, format=output.suffix.removeprefix(".") or "png")


def panel(axes: Axes, title: str, across: str, up: str) -> None:
    """Title, labels and a faint grid."""
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color="#e3e6eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
