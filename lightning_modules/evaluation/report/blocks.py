"""What a report is made of, whatever it is written as: sections of paragraphs, tables and charts.

All numbers are percent (or percentage points) with their 95 % bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

ABSENT = "-"
"""Stands where there is no number."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number in percent; None where no item was scored."""

    value: float | None
    low: float | None = None
    high: float | None = None
    """Bounds of the interval, both or neither."""
    signed: bool = False
    """A difference: written with its sign, drawn from the middle."""

    @property
    def text(self) -> str:
        """The number alone."""
        if self.value is None:
            return ABSENT
        return f"{self.value:{'+' if self.signed else ''}.1f}"

    @property
    def interval(self) -> str:
        """The interval alone, or ""."""
        if self.low is None or self.high is None:
            return ""
        sign = "+" if self.signed else ""
        return f"[{self.low:{sign}.1f}, {self.high:{sign}.1f}]"


Cell = str | Score


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Plain text."""

    text: str
    kind: Literal["text", "warning"] = "text"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a header."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1
    """So many leading columns hold words, the others numbers."""


@dataclass(frozen=True, kw_only=True)
class ChartRow:
    """One bar, or one dot for a difference."""

    label: str
    """Neighboring rows of one label form a group."""
    series: str
    score: Score
    mark: float | None = None
    """Where the chart's mark stands, in percent."""


@dataclass(frozen=True, kw_only=True)
class IntervalChart:
    """Scores with intervals on one horizontal axis. Its numbers stand in a table too, so text formats leave it out."""

    title: str
    rows: Sequence[ChartRow]
    mark: str = ""
    """What the marks are; "" without marks."""


Block = Paragraph | Table | IntervalChart


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with a heading."""

    anchor: str
    """Unique in the report; letters, digits and hyphens."""
    title: str
    blocks: list[Block] = field(default_factory=list)
