"""HTML and SVG as nested calls: whatever is not `Markup` already is escaped, so no text can become an element."""

from __future__ import annotations

import html

_VOID = frozenset({"meta", "img", "input"})
"""Elements without content."""


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """`<tag attributes>children</tag>`.

    Args:
        tag: its name, never made of data.
        children: `Markup` stays as it is, other text is escaped.
        attributes: values are escaped; `class_` is class, other underscores are hyphens; True stands without a value,
            None and False are left out.
    """
    opening = tag
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        opening += f" {name.rstrip('_').replace('_', '-')}"
        if value is not True:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            opening += f'="{html.escape(shown, quote=True)}"'
    return Markup(f"<{opening}>") if tag in _VOID else Markup(f"<{opening}>{joined(*children)}</{tag}>")


def joined(*children: str) -> Markup:
    """Children without an element around them."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child, quote=True) for child in children))
