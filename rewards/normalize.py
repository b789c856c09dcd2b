"""From the text of an answer to a value that can be compared; None where there is none, never a guess."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_EMPHASIS = re.compile(r"(?<!\w)(?P<mark>\*{1,3}|`)(?P<inside>[^*`]+)(?P=mark)(?!\w)")
_OPTION = re.compile(
    r"(?:option\s+)?(?:(?P<bare>[a-z])|\((?P<round>[a-z])\)|(?P<marked>[a-z])[.):])(?:\s+(?P<text>.+))?",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_LETTER = re.compile(
    r"(?<![\w.])(?:[A-Za-z][.):](?!\w)|[A-Za-z]$|[B-HJ-Z](?![\w'-])|A(?![\w'-]|\s+[a-z]))"  # I and "A dog" are words
)
_LISTED_OPTION = re.compile(r"\s*\(?(?P<letter>[A-Za-z])[.):]\s*(?P<text>.*\S)\s*", re.DOTALL)
_WRITTEN_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][+-]?\d+)?|[+-]?\.\d+(?:[eE][+-]?\d+)?")


def parse_number(text: str) -> float | None:
    """The number that `text` spells, thousands commas removed ("1,200" -> 1200.0, "1e3" -> 1000.0).

    None for anything else, units ("5 apples"), infinities and NaN included: NaN would pass through every clip.
    """
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def written_number(text: str) -> float | None:
    """The number of a text that is a number and nothing else, emphasis ("**5**") and a full stop at the end apart.

    Commas must separate thousands: "1,200" is 1200.0, while "1,5" and "12,00" could be decimal commas and are None.
    So is everything with a unit, a sign of currency, a fraction, a range or a word.
    """
    bare = _without_emphasis(text)
    return parse_number(bare) if _WRITTEN_NUMBER.fullmatch(bare) else None


def option_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """The one option that an answer names, as a capital letter; None if it names none, or could name another.

    Accepted are the letter in either case, alone ("A", "a") or marked as one ("A.", "A)", "A:", "(A)"), the marked
    letter before an option's text ("A. left", "(A) left"), each of them after the word "Option", and all of it in
    Markdown emphasis ("**A**", "**A**. left"). Refused are a bare letter before a text ("A left", "a dog"), a text
    without a letter, two letters ("A or B", "A. left B. right") and sentences.

    Args:
        text: the answer without its tags.
        options: the options as listed in the record ("A. left"). If they carry letters, the letter must be one of
            theirs, and a text after it must be that option's, letter case and a full stop at the end apart. Without
            them any letter is accepted, and any text that holds no other letter by itself.
    """
    match = _OPTION.fullmatch(_without_emphasis(text))
    if match is None or (match["bare"] and match["text"]):
        return None
    letter = (match["bare"] or match["round"] or match["marked"]).upper()
    listed = _listed_texts(options)
    if listed and letter not in listed:
        return None
    if match["text"] is None:
        return letter
    if listed:
        return letter if _plain(match["text"]) == listed[letter] else None
    return None if _OTHER_LETTER.search(match["text"]) else letter


def _without_emphasis(text: str) -> str:
    return _EMPHASIS.sub(lambda match: match["inside"], text.strip()).strip()


def _listed_texts(options: Sequence[str]) -> dict[str, str]:
    """Letter -> plain text of the options; empty unless all of them carry letters."""
    matches = [_LISTED_OPTION.fullmatch(option) for option in options]
    return {match["letter"].upper(): _plain(match["text"]) for match in matches if match} if all(matches) else {}


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
