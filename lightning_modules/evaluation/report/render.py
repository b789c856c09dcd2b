"""A report as one HTML file (`page.html.jinja`), and its paragraphs and tables as Markdown."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from datamodules.video.types import LAYOUT, printable
from lightning_modules.evaluation.report.examples import Example
from lightning_modules.evaluation.report.tables import Block, Cell, Note, Score, Section, Table

LONGEST_TEXT = 6000
"""Characters of a text on the page; the middle of a longer one is left out, and the page says so."""

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#$&])")


def render_html(title: str, lead: str, sections: Sequence[Section], examples: Sequence[Example]) -> str:
    """The whole file: no external resource, all data escaped. The examples stand in the section `examples`."""
    loader = PackageLoader("lightning_modules.evaluation.report", "")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"across": across, "base64": _base64, "bounded": bounded}
    environment.tests |= {"score": lambda cell: isinstance(cell, Score), "table": lambda each: isinstance(each, Table)}
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    # Only our own script and style may run: even markup that slipped through could neither act nor load anything.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.jinja").render(
        title=title,
        lead=lead,
        sections=sections,
        examples=examples,
        policy=policy,
        style=style,
        script=script,
    )


def bounded(text: str) -> str:
    """`text`, without its middle if it is longer than `LONGEST_TEXT`."""
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} of {len(text):,} characters left out …]\n{text[-half:]}"


def across(value: float, low: float, high: float) -> str:
    """Place of a value on a plot's axis, which is 120 units long."""
    return f"{120 * (value - low) / (high - low):.1f}"


def _visible(value: object) -> object:
    """What a template shows; signs that no reader sees, and that would turn what stands beside them, are escapes."""
    is_markup = hasattr(value, "__html__")  # by convention, of what templates themselves made
    return printable(value, keep=LAYOUT) if isinstance(value, str) and not is_markup else value


def _digest(content: str) -> str:
    return f"sha256-{_base64(hashlib.sha256(content.encode()).digest())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def render_markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole file; data cannot start an element, a link or a table cell in it."""
    parts = [f"# {_escaped(title)}", _escaped(lead)]
    for section in sections:
        parts += [f"## {_escaped(section.title)}", *map(_markdown, section.blocks)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Note):
        return f"> **Note:** {_escaped(block.text)}"
    if isinstance(block, str):
        return _escaped(block)
    if not block.rows:
        return ""
    rule = ["---" if place < block.text_columns else "---:" for place in range(len(block.header))]
    rows = [[_escaped(name) for name in block.header], rule, *([_cell(cell) for cell in row] for row in block.rows)]
    return "\n".join([f"**{_escaped(block.caption)}**", "", *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(cell: Cell) -> str:
    return str(cell) if isinstance(cell, Score) else _escaped(cell)


def _escaped(text: str) -> str:
    """Text on one line whose signs mean themselves."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split()), keep=LAYOUT))
