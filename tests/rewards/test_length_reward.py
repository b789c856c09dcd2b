import pytest

from rewards.length import LengthReward


def test_accurate_completions_of_the_wanted_length_earn_the_bonus(make_group):
    group = make_group("ABAAA", tokens=[319, 400, 320, 512, 513])
    scores = LengthReward().score(group, {"accuracy": [1.0, 0.0, 1.0, 1.0, 1.0]})
    assert scores == [0.0, 0.0, 0.2, 0.2, 0.0]  # too short, wrong, both ends included, too long


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0]),  # one accurate completion is not enough
        ([1.0, 0.1, 0.0], [0.0, 0.0, 0.0]),  # 0.1 is not above 0.1
        ([1.0, 0.11, 0.0], [0.2, 0.2, 0.0]),
    ],
)
def test_at_least_two_completions_must_be_accurate(make_group, accuracy, expected):
    assert LengthReward().score(make_group("AAA"), {"accuracy": accuracy}) == expected


def test_the_other_accurate_completion_may_have_any_length(make_group):
    group = make_group("AA", tokens=[10, 400])
    assert LengthReward().score(group, {"accuracy": [1.0, 1.0]}) == [0.0, 0.2]


def test_settings_replace_the_published_ones(make_group):
    reward = LengthReward(bonus=1.0, min_tokens=5, max_tokens=6, min_accuracy=0.5, min_accurate=1)
    scores = reward.score(make_group("AAAA", tokens=[4, 5, 6, 6]), {"accuracy": [1.0, 0.6, 0.5, 0.9]})
    assert scores == [0.0, 1.0, 0.0, 1.0]


def test_empty_range_of_lengths_is_refused():
    with pytest.raises(ValueError, match="min_tokens 600 and max_tokens 512"):
        LengthReward(min_tokens=600)


@pytest.mark.parametrize("min_accuracy", [-0.1, 1.0, float("nan")])
def test_threshold_outside_the_range_of_accuracy_is_refused(min_accuracy):
    with pytest.raises(ValueError, match="min_accuracy"):
        LengthReward(min_accuracy=min_accuracy)
