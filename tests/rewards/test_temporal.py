from dataclasses import replace

import pytest

from rewards.temporal import TemporalReward
from rewards.types import ProblemType, RewardInput


def group(shuffled):
    answers = ("<answer>A</answer>",) * 4
    return RewardInput(
        record_id="7",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        problem="?",
        solution="<answer>A</answer>",
        completions=answers,
        completion_tokens=(3,) * 4,
        truncated=(False,) * 4,
        shuffled_completions=shuffled,
    )


def shuffled(right, count):
    return ("<answer>A</answer>",) * right + ("<answer>B</answer>",) * (count - right)


@pytest.mark.parametrize(
    ("accuracy", "right_shuffled", "of", "expected"),
    [
        ([1.0, 1.0, 0.0, 0.0], 1, 2, [0.3, 0.3, 0.0, 0.0]),  # 0.5 >= 0.8 * 0.5
        ([1.0, 0.0, 0.0, 0.0], 2, 2, [0.0] * 4),  # 0.25 < 0.8 * 1
        ([1.0, 1.0, 1.0, 0.0], 2, 2, [0.0] * 4),  # 0.75 < 0.8
        ([1.0, 1.0, 1.0, 1.0], 2, 2, [0.3] * 4),
        ([0.1, 0.5, 0.0, 0.0], 0, 2, [0.0, 0.3, 0.0, 0.0]),  # 0.1 is not above 0.1
        ([0.0] * 4, 0, 2, [0.0] * 4),  # nobody is right
    ],
)
def test_the_order_of_frames_has_to_matter(accuracy, right_shuffled, of, expected):
    assert TemporalReward().score(group(shuffled(right_shuffled, of)), {"accuracy": accuracy}) == expected


GRADED = {  # an OCR answer's accuracy is 1 minus its word error rate: the fraction of these four words that are right
    "problem_type": ProblemType.OCR,
    "solution": "<answer>one two three four</answer>",
}


def graded(*right_words):
    words = ["one", "two", "three", "four"]
    return tuple(f"<answer>{' '.join([*words[:count], *['no'] * (4 - count)])}</answer>" for count in right_words)


@pytest.mark.parametrize(
    ("accuracy", "shuffled_words", "fraction", "mean"),
    [
        # All four are above 0.1, and so are both shuffled ones: 1 >= 0.8 * 1. The means: 0.25 < 0.8 * 0.875 = 0.7.
        ([0.25] * 4, (4, 3), [0.3] * 4, [0.0] * 4),
        # A half is above 0.1: 0.5 < 0.8 * 1. The means: 0.5 >= 0.8 * 0.25 = 0.2.
        ([1.0, 1.0, 0.0, 0.0], (1, 1), [0.0] * 4, [0.3, 0.3, 0.0, 0.0]),
    ],
)
def test_graded_answers_count_as_right_ones_or_by_their_mean(accuracy, shuffled_words, fraction, mean):
    given = replace(group(graded(*shuffled_words)), **GRADED)
    assert TemporalReward().score(given, {"accuracy": accuracy}) == fraction
    assert TemporalReward(variant="paper").score(given, {"accuracy": accuracy}) == fraction
    assert TemporalReward(variant="code").score(given, {"accuracy": accuracy}) == mean


def test_records_without_shuffled_completions_earn_nothing():
    assert TemporalReward().score(group(None), {"accuracy": [1.0] * 4}) == [0.0] * 4


@pytest.mark.parametrize(
    "options", [{"factor": -0.1}, {"shuffled_fraction": 0.0}, {"shuffled_fraction": 1.5}, {"variant": "mean"}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TemporalReward(**options)
