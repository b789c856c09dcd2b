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


def test_records_without_shuffled_completions_earn_nothing():
    assert TemporalReward().score(group(None), {"accuracy": [1.0] * 4}) == [0.0] * 4


@pytest.mark.parametrize("options", [{"factor": -0.1}, {"shuffled_fraction": 0.0}, {"shuffled_fraction": 1.5}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TemporalReward(**options)
