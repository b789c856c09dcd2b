import random
import re
import time
from dataclasses import replace

import pytest

from rewards.answer_format import parse_response, wrap_answer, wrap_think
from rewards.format import FormatReward, format_reward


def test_both_parts_are_read_and_stripped():
    parsed = parse_response("<think> first\nsecond </think>\n<answer>\tB \n</answer>")
    assert (parsed.think, parsed.answer, parsed.well_formed) == ("first\nsecond", "B", True)


def test_first_closed_answer_counts():
    assert parse_response("<answer>A</answer><answer>B</answer>").answer == "A"


@pytest.mark.parametrize("text", ["", "A", "<answer>A", "A</answer>", "<Answer>A</Answer>", "</answer>A<answer>"])
def test_missing_answer_is_none(text):
    assert parse_response(text).answer is None


def test_empty_parts_are_empty_strings_not_none():
    parsed = parse_response("<think></think><answer> </answer>")
    assert (parsed.think, parsed.answer) == ("", "")


def test_reasoning_of_a_revised_process_alone_is_read():
    parsed = parse_response(wrap_think("The ball falls."))
    assert (parsed.think, parsed.answer, parsed.well_formed) == ("The ball falls.", None, False)


@pytest.mark.parametrize("between", ["", "\n", " \t\n\n"])
def test_whitespace_between_the_parts_keeps_the_format(between):
    assert format_reward(wrap_think("x") + between + wrap_answer("A")) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        wrap_answer("A"),
        wrap_think("x"),
        wrap_answer("A") + wrap_think("x"),
        "So: " + wrap_think("x") + wrap_answer("A"),
        wrap_think("x") + wrap_answer("A") + "\n",
        wrap_think("x") + "then" + wrap_answer("A"),
        "<think>x" + wrap_answer("A"),
        wrap_think("x") + "<answer>A",
    ],
)
def test_anything_missing_or_around_breaks_the_format(completion):
    assert format_reward(completion) == 0.0


def test_format_reward_scores_each_completion_of_the_group(make_group):
    group = make_group("AB")
    mixed = replace(group, completions=(group.completions[0], wrap_answer("A")))
    assert FormatReward().score(mixed, {}) == [1.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "<think>" + "</think> <answer>" * 16_000,
        "<think>" + "</think><answer></answer>x" * 10_000,
        ("<think>" + "</think> ") * 16_000 + "</answer>",
        "<think>x</think>" + " " * 256_000 + "</answer>",
    ],
    ids=["middle", "ends", "thoughts", "spaces"],
)
def test_parsing_takes_linear_time(text):
    began = time.perf_counter()
    assert not parse_response(text).well_formed
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("seed", range(20))
def test_well_formed_is_what_the_published_pattern_matches(seed):
    """Against the pattern of the published format reward, on short texts of its pieces."""
    draw, pieces = random.Random(seed), ["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "x"]
    for _ in range(2000):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 7)))
        if draw.random() < 0.5:
            text = f"<think>{text}</answer>"
        published = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)
        assert parse_response(text).well_formed == (published is not None), text
