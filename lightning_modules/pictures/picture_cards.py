"""Cards of wrapped text and colored chips, drawn with PIL.

PIL's built-in scalable font is used, so that no font files are needed. It knows ASCII and little more: accents and
common signs are spelled with what it has, any other script appears as boxes.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

PAGE, CARD, INK, FAINT = "#eceef1", "#ffffff", "#1f2430", "#737b8c"
GREEN, RED, ORANGE, BLUE = "#1a7f45", "#c2362b", "#9a5b00", "#2f5fb3"
PALE = {GREEN: "#dcf3e4", RED: "#fbe2df", ORANGE: "#fdebcc", BLUE: "#e1eafa", INK: "#e4e7ec", FAINT: "#eef0f3"}

SMALL, BODY, TITLE = 14, 17, 21
GAP, PADDING, ACCENT, SPAN_GAP, CHIP_PADDING = 12, 18, 6, 8, 7

# By code point, because several of these look like the ASCII sign that replaces them.
_SPELLED = {
    0x0009: "    ",
    0x00A0: " ",
    0x00D7: "x",  # multiplication sign
    0x00F7: "/",  # division sign
    0x2013: "-",  # en dash
    0x2014: "-",  # em dash
    0x2022: "*",  # bullet
    0x2190: "<-",
    0x2192: "->",
    0x2212: "-",  # minus sign
    0x2248: "~",  # almost equal
    0x2260: "!=",
    0x2264: "<=",
    0x2265: ">=",
}


@dataclass(frozen=True)
class Span:
    """Words in one color; as a chip they stand on a pale, rounded ground of that color."""

    text: str
    color: str = INK
    size: int = BODY
    chip: bool = False

    @property
    def width(self) -> float:
        """In pixels, chip ground included."""
        return font(self.size).getlength(self.text) + (2 * CHIP_PADDING if self.chip else 0)


Row = list[Span]
SPACER: Row = [Span("", size=4)]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The built-in font at `size` pixels."""
    return ImageFont.load_default(size=size)


def drawable(text: str) -> str:
    """`text` in characters that the font has, where there is such a spelling; others stay and appear as boxes."""
    return "".join(char if char == "\n" or _in_font(char) else _spelled(char) for char in text.translate(_SPELLED))


def paragraph(text: str, width: int, max_lines: int, *, tokens: int | None = None, color: str = INK) -> list[Row]:
    """Wrapped text; if too long, its beginning and its end around a line that says how much is missing.

    Args:
        text: may contain line breaks.
        width: of a line, in pixels.
        max_lines: number of rows that come back at most, at least 3.
        tokens: length of the text in tokens, the unit of what is missing; None counts characters.
        color: of the text.
    """
    # No line holds more characters than this, so text beyond it need not be measured to know that it does not fit.
    reach = max_lines * width // 3
    parts = [text] if len(text) <= 2 * reach else [text[:reach], text[-reach:]]
    lines = [line for part in parts for line in _wrapped(part, width)]
    if len(lines) <= max_lines:
        return [[Span(line, color)] for line in lines]
    last = max_lines // 3
    first = max_lines - 1 - last
    missing = 1 - sum(len(line) for line in lines[:first] + lines[-last:]) / len(text)
    total, unit = (len(text), "characters") if tokens is None else (tokens, "tokens")
    note = Span(f"... about {missing * total:,.0f} of {total:,} {unit} left out ...", FAINT)
    return [*([Span(line, color)] for line in lines[:first]), [note], *([Span(line, color)] for line in lines[-last:])]


def flowing(spans: Sequence[Span], width: int) -> list[Row]:
    """Spans in rows, none wider than `width` pixels unless one span alone is."""
    rows: list[Row] = []
    room = 0.0
    for span in spans:
        if not rows or span.width > room:
            rows.append([])
            room = width
        rows[-1].append(span)
        room -= span.width + SPAN_GAP
    return rows


def card(rows: Sequence[Row], accent: str, width: int) -> Image.Image:
    """Rows of spans on white with a bar of the accent color at the left."""
    heights = [max(span.size for span in row) + (14 if any(span.chip for span in row) else 6) for row in rows]
    image = Image.new("RGB", (width, sum(heights) + 2 * PADDING), CARD)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, ACCENT - 1, image.height), accent)
    y = PADDING
    for row, height in zip(rows, heights, strict=True):
        x = float(ACCENT + PADDING)
        for span in row:
            _draw_span(draw, span, x, y + height / 2)
            x += span.width + SPAN_GAP
        y += height
    return image


def card_text_width(width: int) -> int:
    """Pixels that a row may take on a card of `width` pixels."""
    return width - ACCENT - 2 * PADDING


def stacked(blocks: Sequence[Image.Image], width: int) -> Image.Image:
    """Blocks of `width` pixels below each other."""
    page = Image.new("RGB", (width, sum(block.height + GAP for block in blocks) - GAP), PAGE)
    y = 0
    for block in blocks:
        page.paste(block, (0, y))
        y += block.height + GAP
    return page


def _draw_span(draw: ImageDraw.ImageDraw, span: Span, x: float, middle: float) -> None:
    if span.chip:
        reach = span.size / 2 + 4
        draw.rounded_rectangle((x, middle - reach, x + span.width, middle + reach), radius=5, fill=PALE[span.color])
        x += CHIP_PADDING
    # The baseline sits a third of the size under the middle, for every size in the row.
    draw.text((x, middle + span.size / 3), span.text, span.color, font(span.size), anchor="ls")


def _spelled(char: str) -> str:
    known = "".join(part for part in unicodedata.normalize("NFKD", char) if _in_font(part))
    invisible = unicodedata.category(char) in ("Cc", "Cf", "Mn")
    return known or ("" if invisible else char)


@cache
def _in_font(char: str) -> bool:
    """A character that the font lacks is drawn as its box for missing glyphs, like the non-character U+FFFF."""
    return bytes(font(BODY).getmask(char)) != bytes(font(BODY).getmask("\uffff"))


def _wrapped(text: str, width: int) -> list[str]:
    measure = font(BODY).getlength
    lines = []
    for source in drawable(text).strip("\n").split("\n"):
        line = ""
        for word in source.split(" "):
            longer = f"{line} {word}" if line else word
            if measure(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while measure(word) > width:
                fits = max(_fitting(word, width), 1)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return lines


def _fitting(word: str, width: int) -> int:
    """How many leading characters of `word` fit into `width` pixels."""
    # No character is narrower than 2 pixels; measuring more would make long words quadratic.
    candidates = range(min(len(word), width // 2) + 1)
    return bisect_right(candidates, width, key=lambda count: font(BODY).getlength(word[:count])) - 1
