"""Numbers in answers: a finite number, or None where the text is not one. Nothing is guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from rewards.errors import UserError

_EMPHASIS = re.compile(r"(?<!\w)(?P<mark>\*{1,3}|`)(?P<inside>[^*`]+)(?P=mark)(?!\w)")
_WRITTEN_NUMBER = re.compile(
    r"(?P<number>[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|\.(?=[eE]))?|\.\d+)(?:[eE][+-]?\d+)?)\.?"
)


def parse_number(text: str) -> float | None:
    """The number that `text` spells, thousands commas removed ("1,200" -> 1200.0, "1e3" -> 1000.0).

    None for anything else, including units ("5 apples"), infinities and NaN: NaN would pass through every clip.
    """
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def gold_number(text: str, parse: Callable[[str], float | None] = parse_number) -> float:
    """The number that a gold answer spells, as `parse` reads it; a UserError if it is none."""
    number = parse(text)
    if number is None:
        raise UserError(f"The gold answer {text!r} is not a number; write digits only, or correct the problem type.")
    return number


def written_number(text: str) -> float | None:
    """The number of a text that is nothing but a number, except for emphasis ("**5**") and a full stop at the end.

    Commas must separate thousands: "1,200" is 1200.0, while "1,5" and "12,00" could be decimal commas and are None.
    So is everything with a unit, a currency sign, a fraction, a range or a word.
    """
    match = _WRITTEN_NUMBER.fullmatch(without_emphasis(text))
    return parse_number(match["number"]) if match else None


def without_emphasis(text: str) -> str:
    """`text` without Markdown emphasis ("**A**", "`5`") and surrounding whitespace."""
    return _EMPHASIS.sub(lambda match: match["inside"], text.strip()).strip()
