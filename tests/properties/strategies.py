"""What data files, models and users may come up with."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from rewards.answer_format import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, wrap_answer, wrap_think
from rewards.types import ProblemType

TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
"""Lone surrogates, control characters and null included."""
SOUND_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
"""What a file in UTF-8 can hold."""
WORDS = (
    "A",
    "b",
    "(C)",
    "D.",
    "a.m.",
    "Option ",
    "Caption B: ",
    "left",
    "12",
    "0.3",
    "1,200",
    "e5",
    "1/2",
    "nan",
    "1_0",
)
MARKS = ("**", "*", "`", "-", ".", ",", " ", "\n", "\r", "\u2028", "\u00a0", "<|video_pad|>", "{", "}", "²")
FRAGMENTS = st.sampled_from([*TAGS, *WORDS, *MARKS])
ANSWERS = st.lists(FRAGMENTS | SOUND_TEXT, max_size=8).map("".join)
"""Text that looks like an answer, or like a question with options."""

ODD_NUMBERS = st.sampled_from([0, -0.0, 5e-324, 1.5, -3, 1e308, float("inf"), float("nan"), 10**400, 2**63, True])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ODD_NUMBERS | ANY_TEXT
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4), max_leaves=10
)
"""What `json.loads` may give, NaN and halves of characters included."""


def nested(value: Any, depth: int) -> Any:
    """`value` inside `depth` lists."""
    for _ in range(depth):
        value = [value]
    return value


DEEP_VALUES = st.builds(nested, SCALARS, st.integers(1, 400))

LETTERED = st.integers(2, 5).flatmap(
    lambda count: st.lists(SOUND_TEXT, min_size=count, max_size=count).map(
        lambda texts: [f"{letter}. {text}" for letter, text in zip("ABCDE", texts, strict=False)]
    )
)


@st.composite
def sound_records(draw: st.DrawFn) -> dict[str, Any]:
    """The JSON of a valid record, with a chain of thought."""
    data_type = draw(st.sampled_from(["video", "image", "text"]))
    record: dict[str, Any] = {
        "problem_id": draw(st.integers(0, 10**6) | SOUND_TEXT.filter(bool)),
        "problem": draw(ANSWERS.filter(str.strip)),
        "data_type": data_type,
        "problem_type": draw(st.sampled_from([item.value for item in ProblemType])),
        "solution": wrap_answer(draw(st.sampled_from(["A", "12", "1,200.5", "a red ball", "0"]))),
        "process": wrap_think(draw(SOUND_TEXT) + "x"),
        "options": draw(st.just([]) | LETTERED),
    }
    if data_type != "text":
        record["path"] = draw(st.sampled_from(["clip.mp4", "./a/b c.jpg", "ü/…/x.webm", "a/../b.mp4"]))
    record.update(draw(st.dictionaries(st.sampled_from(["duration", "task", "note"]), st.integers() | SOUND_TEXT)))
    return record


@st.composite
def odd_records(draw: st.DrawFn) -> Any:
    """A valid record with some fields replaced, added or removed; or no record at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON_VALUES)
    record = draw(sound_records())
    names = st.sampled_from([*record, "path", "start", "end", "extra", "file", "line", "data_source"]) | ANY_TEXT
    changes = draw(st.dictionaries(names, JSON_VALUES | DEEP_VALUES, max_size=2))
    record.update(changes)
    for name in draw(st.lists(st.sampled_from(list(record)), max_size=1)):
        del record[name]
    return record
