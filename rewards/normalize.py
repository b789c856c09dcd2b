"""From the text of an answer to a value that can be compared; None where there is none, never a guess."""

from __future__ import annotations

import math


def parse_number(text: str) -> float | None:
    """The number that `text` spells, thousands commas removed ("1,200" -> 1200.0, "1e3" -> 1000.0).

    None for anything else, units ("5 apples"), infinities and NaN included: NaN would pass through every clip.
    """
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
