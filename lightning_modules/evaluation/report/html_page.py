"""A report as one HTML file: no external resource, its script and style named in its policy, all data escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from lightning_modules.evaluation.report.blocks import Block, Cell, Paragraph, Score, Section, Table
from lightning_modules.evaluation.report.charts import cell_bar, draw_chart
from lightning_modules.evaluation.report.example_cards import examples_section
from lightning_modules.evaluation.report.examples import Example
from lightning_modules.evaluation.report.markup import Markup, element, joined


def render_html(title: str, lead: str, sections: Sequence[Section], examples: Sequence[Example]) -> str:
    """The whole file. The examples come before the last section."""
    style, script = (Markup(resources.files(__package__).joinpath(name).read_text("utf-8")) for name in _FILES)
    parts = [(section.anchor, section.title, _section(section)) for section in sections]
    if examples:
        parts.insert(len(parts) - 1, ("examples", "Examples", examples_section(examples)))
    # Only our own script and style may run: even markup that slipped through could neither act nor load anything.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    links = [element("li", element("a", name, href=f"#{anchor}")) for anchor, name, _ in parts]
    body = element(
        "body",
        element("a", "Skip to the report", class_="skip", href="#report"),
        element("header", element("h1", title), element("p", lead)),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", *(part for *_, part in parts), id="report"),
        element("script", script),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


_FILES = ("page.css", "page.js")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _section(section: Section) -> Markup:
    blocks = [_block(block) for block in section.blocks]
    return element("section", element("h2", section.title), *blocks, id=section.anchor)


def _block(block: Block) -> Markup:
    if isinstance(block, Paragraph):
        return element("p", block.text, class_=block.kind)
    if isinstance(block, Table):
        return _table(block) if block.rows else Markup()
    return element("figure", element("figcaption", block.title), draw_chart(block)) if block.rows else Markup()


def _table(table: Table) -> Markup:
    kinds = ["word" if place < table.text_columns else "number" for place in range(len(table.header))]
    header = [element("th", name, scope="col", class_=kind) for name, kind in zip(table.header, kinds, strict=True)]
    rows = []
    for row in table.rows:
        first, *others = [_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True)]
        rows.append(
            element(
                "tr",
                element("th", first, scope="row"),
                *(element("td", cell, class_=kind) for cell, kind in zip(others, kinds[1:], strict=True)),
            )
        )
    return element(
        "div",
        element(
            "table",
            element("caption", table.caption),
            element("thead", element("tr", *header)),
            element("tbody", *rows),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=table.caption,
    )


def _cell(cell: Cell, kind: str) -> Markup:
    if not isinstance(cell, Score):
        return joined(cell)
    parts = [element("span", cell.text, class_="score")]
    if cell.interval:
        parts.append(element("span", cell.interval, class_="interval"))
        if not cell.signed:
            parts.append(cell_bar(cell))
    return joined(*parts)
