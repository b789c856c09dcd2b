import math
from collections.abc import Callable

import pytest
import torch

from lightning_modules.functional.advantages import group_relative_advantages
from rewards import AccuracyReward, FormatReward, LengthReward, Reward
from rewards.base import RewardError
from rewards.suite import NonFiniteScoreError, RewardSuite


class StatedReward(Reward):
    """Returns what a function makes of the group; the smallest reward that a user could write."""

    name = "stated"

    def __init__(self, scores: Callable = lambda group: [1.0] * len(group.completions), **settings) -> None:
        super().__init__(**settings)
        self.scores = scores

    def score(self, group, raw):
        return self.scores(group)


class RequiringReward(Reward):
    """The sum of the raw scores that it requires."""

    def __init__(self, requires: tuple[str, ...], **settings) -> None:
        super().__init__(**settings)
        self.requires = requires

    def score(self, group, raw):
        assert set(raw) == set(self.requires)
        return [sum(scores) for scores in zip(*raw.values(), strict=True)]


def test_total_is_the_sum_of_weight_times_gate_times_raw(make_group):
    suite = RewardSuite(
        [
            StatedReward(lambda group: [0.5, 0.25, -1.0], weight=2.0, gate="accuracy"),
            AccuracyReward(),
            FormatReward(weight=0.5),
        ]
    )
    breakdown = suite.score([make_group("ABA"), make_group("BBB", record_id="8")])
    # Accuracy opens the gate for the first and third completion of the first group, and for none of the second.
    expected = {
        "stated": [[2 * 0.5, 0.0, 2 * -1.0], [0.0, 0.0, 0.0]],
        "accuracy": [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
        "format": [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]],
    }
    assert {name: values.tolist() for name, values in breakdown.contributions.items()} == expected
    # 1 + 1 + 0.5, 0 + 0 + 0.5, -2 + 1 + 0.5
    assert breakdown.total.tolist() == [[2.5, 0.5, -0.5], [0.5, 0.5, 0.5]]
    assert breakdown.components["stated"].tolist() == [[0.5, 0.25, -1.0], [0.5, 0.25, -1.0]]  # before weight and gate
    assert breakdown.total.dtype == torch.float32
    assert list(breakdown.components) == list(breakdown.contributions) == ["stated", "accuracy", "format"]


def test_a_reward_may_return_a_tensor(make_group):
    suite = RewardSuite([StatedReward(lambda group: torch.tensor([1.0, 0.5], dtype=torch.float64))])
    assert suite.score([make_group("AB")]).total.tolist() == [[1.0, 0.5]]


def test_gate_stays_closed_at_zero_and_below(make_group):
    suite = RewardSuite(
        [StatedReward(lambda group: [1e-6, 0.0, -1.0], name="gate", weight=0.0), StatedReward(gate="gate")]
    )
    assert suite.score([make_group("AAA")]).total.tolist() == [[1.0, 0.0, 0.0]]


def test_weight_zero_measures_without_counting(make_group):
    breakdown = RewardSuite([AccuracyReward(), StatedReward(weight=0.0)]).score([make_group("AB")])
    assert breakdown.total.tolist() == [[1.0, 0.0]]
    assert breakdown.components["stated"].tolist() == [[1.0, 1.0]]


def test_published_length_bonus_reads_accuracy_of_its_own_group(make_group):
    suite = RewardSuite([LengthReward(), AccuracyReward()])  # Listed before what it requires.
    breakdown = suite.score([make_group("AAB", tokens=[400, 10, 400]), make_group("ABB")])
    # The second group has only one right answer.
    assert breakdown.components["length"].tolist() == [[pytest.approx(0.2), 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_requirements_are_evaluated_in_dependency_order(make_group):
    suite = RewardSuite(
        [
            RequiringReward(("middle", "accuracy"), name="top"),
            RequiringReward(("accuracy",), name="middle"),
            AccuracyReward(weight=5.0),
        ]
    )
    breakdown = suite.score([make_group("AB")])
    assert breakdown.components["top"].tolist() == [[2.0, 0.0]]  # raw scores, not weighted ones: 1 + 1


def test_time_is_measured_per_reward(make_group, monkeypatch):
    readings = iter([0.0, 0.25, 1.0, 4.0])
    monkeypatch.setattr("rewards.suite.time.perf_counter", lambda: next(readings))
    breakdown = RewardSuite([AccuracyReward(), FormatReward()]).score([make_group("A")])
    assert breakdown.seconds == {"accuracy": 0.25, "format": 3.0}


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "empty"),
        ([AccuracyReward(), AccuracyReward()], "2 rewards are named 'accuracy'"),
        ([RequiringReward(())], "RequiringReward has no name"),
        ([StatedReward(name="total")], "named 'total'"),
        ([FormatReward(gate="acuracy"), AccuracyReward()], r"'format' is gated by 'acuracy'.*\(format, accuracy\)"),
        ([LengthReward(), FormatReward()], r"'length' requires 'accuracy'.*\(length, format\)"),
        ([FormatReward(gate="format")], "cycle: format -> format"),
        ([FormatReward(gate="accuracy"), AccuracyReward(gate="format")], "cycle"),
        ([AccuracyReward(gate="length"), LengthReward()], "cycle"),
        ([AccuracyReward(weight=-1.0)], "'accuracy' has weight -1.0"),
        ([AccuracyReward(weight=math.nan)], "'accuracy' has weight nan"),
        ([AccuracyReward(weight=math.inf)], "'accuracy' has weight inf"),
        ([AccuracyReward(weight=0.0), FormatReward(weight=0.0)], r"\(accuracy, format\) have weight 0"),
    ],
)
def test_impossible_suites_are_refused_at_construction(rewards, message):
    with pytest.raises(ValueError, match=message):
        RewardSuite(rewards)


@pytest.mark.parametrize(
    "returned",
    [
        None,
        [1.0],
        [1.0, 1.0, 1.0],
        [1.0, None],
        [1.0, math.nan],
        [math.inf, 1.0],
        ["1", "1"],
        torch.tensor([1.0, math.nan]),
        1.0,
    ],
    ids=repr,
)
def test_anything_but_finite_numbers_is_refused_with_reward_and_record(make_group, returned):
    suite = RewardSuite(
        [AccuracyReward(), StatedReward(lambda group: [0.0, 0.0] if group.record_id == "a" else returned)]
    )
    with pytest.raises(ValueError, match="'stated' on problem_id b returned"):
        suite.score([make_group("AB", record_id="a"), make_group("AB", record_id="b")])


@pytest.mark.parametrize("score", [1e300, -1e39, 1.1e16, 10**400, math.inf, math.nan], ids=str)
def test_what_float32_cannot_hold_is_refused_before_the_cast(make_group, score):
    suite = RewardSuite([StatedReward(lambda group: [0.0, score])])
    message = r"'stated' on problem_id b returned .* completion 1; .* at most 1e\+16"
    with pytest.raises(NonFiniteScoreError, match=message):
        suite.score([make_group("AB", record_id="b")])


def test_scores_of_the_largest_size_have_finite_advantages(make_group):
    total = RewardSuite([StatedReward(lambda group: [1e16, -1e16])]).score([make_group("AB")]).total
    # Two values at a distance of d from their mean have the standard deviation d * sqrt(2).
    assert group_relative_advantages(total)[0].tolist() == pytest.approx([2**-0.5, -(2**-0.5)])


def test_a_weight_that_makes_the_total_too_large_is_refused(make_group):
    suite = RewardSuite([AccuracyReward(), StatedReward(lambda group: [1e10, 0.0], weight=1e7)])
    message = r"problem_id b, completion 0, is 1e\+17 \(accuracy 1, stated 1e\+17\)"
    with pytest.raises(NonFiniteScoreError, match=message):
        suite.score([make_group("AB", record_id="b")])


def test_failure_inside_a_reward_names_the_reward_and_the_record(make_group):
    suite = RewardSuite([StatedReward(lambda group: {"a": [1.0]}[group.record_id])])
    with pytest.raises(RewardError, match="'stated' failed on problem_id b: KeyError") as caught:
        suite.score([make_group("A", record_id="a"), make_group("A", record_id="b")])
    assert isinstance(caught.value.__cause__, KeyError)


def test_bad_gold_answer_is_reported_with_its_record(make_group):
    with pytest.raises(RewardError, match="'accuracy' failed on problem_id b: UserError: The solution"):
        RewardSuite([AccuracyReward()]).score([make_group("A"), make_group("A", gold="", record_id="b")])


def test_groups_of_different_sizes_are_refused(make_group):
    with pytest.raises(ValueError, match="given per problem_id: a: 2, b: 3"):
        RewardSuite([AccuracyReward()]).score([make_group("AB", record_id="a"), make_group("ABC", record_id="b")])


def test_empty_batches_and_groups_are_refused(make_group):
    suite = RewardSuite([AccuracyReward()])
    with pytest.raises(ValueError, match="no groups"):
        suite.score([])
    with pytest.raises(ValueError, match="at least 1"):
        suite.score([make_group("")])
