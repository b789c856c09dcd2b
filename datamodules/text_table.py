"""Tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+]?[\d.,]*%?(-[\d,]+)?")


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of indented columns; a column that holds numbers below its first row is aligned to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    align = [str.rjust if all(map(_NUMBER.fullmatch, column[1:])) else str.ljust for column in columns]
    lines = ([put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)] for row in rows)
    return ["  " + "  ".join(cells).rstrip() for cells in lines]
