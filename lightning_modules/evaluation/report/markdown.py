"""A report as Markdown: its paragraphs and tables. Charts and examples are in the HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_modules.evaluation.report.blocks import Block, Cell, Paragraph, Score, Section, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#$&])")


def render_markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole file; data cannot start an element, a link or a table cell in it."""
    parts = [f"# {escaped(title)}", escaped(lead)]
    for section in sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [text for block in section.blocks if (text := _block(block))]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text on one line whose signs mean themselves."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"> **Note:** {escaped(block.text)}" if block.kind == "warning" else escaped(block.text)
    if isinstance(block, Table):
        return _table(block)
    return ""


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    rule = ["---" if place < table.text_columns else "---:" for place in range(len(table.header))]
    rows = [[escaped(name) for name in table.header], rule, *([_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join([f"**{escaped(table.caption)}**", "", *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(cell: Cell) -> str:
    if isinstance(cell, Score):
        return f"{cell.text} {cell.interval}".strip()
    return escaped(cell)
