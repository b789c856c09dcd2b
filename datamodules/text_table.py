"""Tables and lists for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datamodules.video.types import printable

SHOWN = 20
"""A list shows this many of its lines and counts the others."""

_NUMBER = re.compile(r"[-+]?[\d.,]*%?(-[\d,]+)?")


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of indented columns; a column that holds numbers below its first row is aligned to the right.

    What a terminal would obey stands in the cells as escapes.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    align = [str.rjust if all(map(_NUMBER.fullmatch, column[1:])) else str.ljust for column in columns]
    lines = ([put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)] for row in rows)
    return ["  " + "  ".join(cells).rstrip() for cells in lines]


def listed(lines: Sequence[str]) -> str:
    """Indented lines, each after a line feed; of many, the first `SHOWN` and how many more there are."""
    more = [f"and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])
