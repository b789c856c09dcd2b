"""The letters of a question's options, listed or written into the question."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.option_letters import option_letters
from datamodules.types import VideoRecord
from rewards.types import ProblemType


def record(problem: str = "Which?", options: tuple[str, ...] = ()) -> VideoRecord:
    return VideoRecord(
        problem_id="7",
        problem=problem,
        data_type="text",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        solution="<answer>A</answer>",
        options=options,
        file=Path("eval.json"),
        line=3,
    )


@pytest.mark.parametrize(
    ("given", "letters"),
    [
        (record(options=("A. red", "B. blue")), "AB"),
        (record(options=("(A) red", "(B) blue", "(C) B. green")), "ABC"),
        (record(options=("A: red", "B) blue.")), "AB"),
        (record("Which?\nA. red\nB. blue\nC. green"), "ABC"),
        (record("Which caption?\nCaption A: A. Smith runs.\nCaption B: he walks."), "AB"),
        (record("Who is B. Smith?\n  (A) one\n  (B) two"), "AB"),
    ],
)
def test_letters(given, letters):
    assert option_letters(given) == tuple(letters)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (record(), "the lines of the question give the letters none"),
        (record("A. what?"), "letters A;"),
        (record(options=("red", "blue")), "letters none;"),
        (record(options=("A. red", "blue", "C. green")), "letters A, C;"),
        (record(options=("A. red", "C. blue")), "letters A, C;"),
        (record("1. one\nB. two\nC. three"), "letters B, C;"),
    ],
)
def test_what_is_not_lettered_is_refused(given, shown):
    with pytest.raises(ValueError, match=r"^eval\.json:3 \(problem_id 7\): .*Label them") as error:
        option_letters(given)
    assert shown in str(error.value)
