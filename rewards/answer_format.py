"""The format of a response: `<think>reasoning</think><answer>answer</answer>`. Only this file knows the tags.

Tags are case-sensitive, as in the published data and rewards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

_MIDDLE = re.compile(rf"{THINK_CLOSE}\s*{ANSWER_OPEN}")


@dataclass(frozen=True, kw_only=True)
class ParsedResponse:
    """The parts of a response. An empty pair of tags gives "", a missing or unclosed one None."""

    think: str | None
    """Text of the first closed think element, surrounding whitespace removed."""
    answer: str | None
    """Text of the first closed answer element, surrounding whitespace removed."""
    well_formed: bool
    """The whole text is one think element, optional whitespace and one answer element, with nothing before or after.
    Further tags inside are tolerated, as in the published format reward."""


def parse_response(completion: str) -> ParsedResponse:
    """Find the reasoning and the answer in a completion, or in a record's `process` or `solution`."""
    return ParsedResponse(
        think=_first_element(completion, THINK_OPEN, THINK_CLOSE),
        answer=_first_element(completion, ANSWER_OPEN, ANSWER_CLOSE),
        well_formed=_is_well_formed(completion),
    )


def wrap_think(text: str) -> str:
    """`text` between think tags, as in a record's `process`."""
    return f"{THINK_OPEN}{text}{THINK_CLOSE}"


def wrap_answer(text: str) -> str:
    """`text` between answer tags, as in a record's `solution`."""
    return f"{ANSWER_OPEN}{text}{ANSWER_CLOSE}"


def _is_well_formed(text: str) -> bool:
    # One pattern for the whole text would take quadratic time where the tags in its middle repeat.
    if not (text.startswith(THINK_OPEN) and text.endswith(ANSWER_CLOSE)):
        return False
    return _MIDDLE.search(text, len(THINK_OPEN), len(text) - len(ANSWER_CLOSE)) is not None


def _first_element(text: str, opening: str, closing: str) -> str | None:
    # str.find takes linear time; a regular expression would be quadratic in a completion that repeats one tag.
    start = text.find(opening)
    end = text.find(closing, start + len(opening))
    return None if start < 0 or end < 0 else text[start + len(opening) : end].strip()
