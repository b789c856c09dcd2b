"""What a report is made of, whatever it is written as: sections of paragraphs and tables.

All scores are percent (or percentage points) with their 95 % bootstrap intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

ABSENT = "-"
"""Stands where there is no number."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number in percent, drawn as a plot where it has an interval."""

    value: float | None
    """None where no item was scored."""
    interval: tuple[float, float] | None = None
    """Lower and upper bound."""
    signed: bool = False
    """A difference: written with its sign, drawn from the middle."""
    mark: float | None = None
    """A number of others, in percent, that the plot marks; the table says whose it is."""

    def __str__(self) -> str:
        return f"{self.number} {self.bounds}".rstrip()

    @property
    def number(self) -> str:
        """The number alone."""
        return ABSENT if self.value is None else f"{self.value:{'+' if self.signed else ''}.1f}"

    @property
    def bounds(self) -> str:
        """The interval alone, or ""."""
        if self.interval is None:
            return ""
        return "[{:{sign}.1f}, {:{sign}.1f}]".format(*self.interval, sign="+" if self.signed else "")


Cell = str | Score


@dataclass(frozen=True)
class Note:
    """A paragraph that must not be overlooked."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a header."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1
    """So many leading columns hold words, the others numbers."""
    mark: str = ""
    """Whose numbers the scores' marks are."""

    @property
    def plotted(self) -> dict[int, list[Score]]:
        """Column -> its scores that are drawn."""
        drawn = defaultdict(list)
        for row in self.rows:
            for column, cell in enumerate(row):
                if isinstance(cell, Score) and cell.interval:
                    drawn[column].append(cell)
        return drawn

    @property
    def axis(self) -> tuple[int, int]:
        """Ends of the axis that all plots of the table share: 0 and 100, or for differences with zero in the middle."""
        scores = [score for column in self.plotted.values() for score in column]
        if not any(score.signed for score in scores):
            return 0, 100
        furthest = max(abs(bound) for score in scores for bound in score.interval or ())
        reach = next((reach for reach in (1, 2, 5, 10, 20, 50) if furthest <= reach), 100)
        return -reach, reach


Block = str | Note | Table
"""A string is a paragraph of plain text."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with a heading."""

    anchor: str
    """Unique in the report; letters, digits and hyphens."""
    title: str
    blocks: Sequence[Block]
