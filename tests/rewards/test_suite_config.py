import math
from dataclasses import replace

import pytest
import torch

from rewards import AccuracyReward, Reward
from rewards.suite import TRUNCATION, RewardSuite, SuiteConfig
from rewards.types import ProblemType

PER_REWARD = SuiteConfig(normalization="per_reward")


class Stated(Reward):
    """Given scores, the same for every group; remembers whom it was asked about."""

    name = "stated"

    def __init__(self, scores, **settings):
        super().__init__(**settings)
        self.scores = scores
        self.asked = []

    def score(self, group, raw):
        self.asked.append(group.record_id)
        return self.scores


def test_per_reward_standardizes_each_reward_within_its_group_before_the_weighted_sum(make_group):
    suite = RewardSuite(
        [Stated([1.0, 2.0, 3.0], name="small", weight=2.0), Stated([20.0, 10.0, 0.0], name="large")], PER_REWARD
    )
    breakdown = suite.score([make_group("ABC")])
    # small: mean 2, standard deviation sqrt((1 + 0 + 1) / 2) = 1; large: mean 10, sqrt((100 + 0 + 100) / 2) = 10.
    small, large = 1 / (1 + 1e-4), 10 / (10 + 1e-4)
    assert breakdown.contributions["small"].tolist() == [pytest.approx([-2 * small, 0.0, 2 * small])]
    assert breakdown.contributions["large"].tolist() == [pytest.approx([large, 0.0, -large])]
    assert breakdown.total.tolist() == [pytest.approx([large - 2 * small, 0.0, 2 * small - large])]
    assert breakdown.components["large"].tolist() == [[20.0, 10.0, 0.0]]  # stays raw
    assert breakdown.total.dtype == torch.float32


def test_sum_then_normalize_leaves_the_scale_to_the_rewards(make_group):
    suite = RewardSuite([Stated([1.0, 2.0, 3.0], name="small", weight=2.0), Stated([20.0, 10.0, 0.0], name="large")])
    assert suite.score([make_group("ABC")]).total.tolist() == [[22.0, 14.0, 6.0]]


def test_groups_are_standardized_by_themselves_and_after_the_gate(make_group):
    suite = RewardSuite([AccuracyReward(weight=0.0), Stated([2.0, 9.0, 4.0], gate="accuracy")], PER_REWARD)
    breakdown = suite.score([make_group("ABA"), make_group("BBB")])
    # The gate leaves 2, 0, 4: mean 2, standard deviation sqrt((0 + 4 + 4) / 2) = 2; and 0, 0, 0.
    scale = 2 / (2 + 1e-4)
    assert breakdown.total.tolist() == [pytest.approx([0.0, -scale, scale]), [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_reward_that_says_the_same_of_all_adds_exactly_nothing(make_group, size):
    suite = RewardSuite([Stated([0.1] * size)], PER_REWARD)
    assert suite.score([make_group("A" * size)]).total.tolist() == [[0.0] * size]


def truncated_group(make_group):
    return replace(make_group("AAA"), truncated=(False, True, False))


def test_truncated_completions_are_scored_as_they_are_by_default(make_group):
    suite = RewardSuite([Stated([2.0, 9.0, 4.0])])
    assert suite.score([truncated_group(make_group)]).total.tolist() == [[2.0, 9.0, 4.0]]


def test_zero_takes_every_reward_from_truncated_completions(make_group):
    suite = RewardSuite([Stated([2.0, 9.0, 4.0]), AccuracyReward()], SuiteConfig(truncation="zero"))
    breakdown = suite.score([truncated_group(make_group)])
    assert breakdown.total.tolist() == [[3.0, 0.0, 5.0]]
    assert breakdown.components["stated"].tolist() == [[2.0, 9.0, 4.0]]


def test_zero_comes_before_the_standardization(make_group):
    suite = RewardSuite([Stated([2.0, 9.0, 4.0])], SuiteConfig(normalization="per_reward", truncation="zero"))
    scale = 2 / (2 + 1e-4)  # of 2, 0, 4
    assert suite.score([truncated_group(make_group)]).total.tolist() == [pytest.approx([0.0, -scale, scale])]


@pytest.mark.parametrize(
    ("normalization", "kept"),
    [("sum_then_normalize", [1.0, 2.0, 3.0]), ("per_reward", [-1 / 1.0001, 0.0, 1 / 1.0001])],
)
def test_the_penalty_comes_last_and_is_a_contribution_of_its_own(make_group, normalization, kept):
    settings = SuiteConfig(normalization=normalization, truncation="penalize", truncation_penalty=0.5)
    breakdown = RewardSuite([Stated([1.0, 2.0, 3.0])], settings).score([truncated_group(make_group)])
    assert breakdown.contributions[TRUNCATION].tolist() == [[0.0, -0.5, 0.0]]
    assert breakdown.total.tolist() == [pytest.approx([kept[0], kept[1] - 0.5, kept[2]])]
    assert torch.equal(breakdown.total, sum(breakdown.contributions.values()))
    assert list(breakdown.components) == ["stated"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization": "batch"}, "suite.normalization is 'batch'; allowed are 'sum_then_normalize', 'per_reward'"),
        ({"truncation": "drop"}, "suite.truncation is 'drop'; allowed are 'keep', 'zero', 'penalize'"),
        ({"truncation": "penalize"}, "'penalize' and suite.truncation_penalty is None; set both"),
        ({"truncation_penalty": 0.5}, "'keep' and suite.truncation_penalty is 0.5; set both"),
        ({"truncation": "zero", "truncation_penalty": 0.5}, "'zero' and suite.truncation_penalty is 0.5; set both"),
        ({"truncation": "penalize", "truncation_penalty": 0.0}, "truncation_penalty is 0.0; .* above 0"),
        ({"truncation": "penalize", "truncation_penalty": -1.0}, "truncation_penalty is -1.0; .* above 0"),
        ({"truncation": "penalize", "truncation_penalty": math.nan}, "truncation_penalty is nan; .* above 0"),
        ({"truncation": "penalize", "truncation_penalty": math.inf}, "truncation_penalty is inf; .* finite"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SuiteConfig(**settings)


def test_a_routed_reward_is_asked_about_its_own_kinds_only_and_scores_zero_elsewhere(make_group):
    reward = Stated([1.0, 2.0], problem_types=["OCR", "free-form"])
    suite = RewardSuite([reward, Stated([0.5, 0.5], name="base")])
    kinds = [ProblemType.OCR, ProblemType.MULTIPLE_CHOICE, ProblemType.FREE_FORM, ProblemType.NUMERICAL]
    groups = [make_group("AB", problem_type=kind, record_id=str(row)) for row, kind in enumerate(kinds)]
    breakdown = suite.score(groups)
    assert reward.asked == ["0", "2"]
    assert breakdown.components["stated"].tolist() == [[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]
    assert breakdown.total.tolist() == [[1.5, 2.5], [0.5, 0.5], [1.5, 2.5], [0.5, 0.5]]


def test_a_reward_that_no_group_is_for_is_not_asked(make_group):
    reward = Stated([1.0, 2.0], problem_types=["OCR"])
    breakdown = RewardSuite([reward, AccuracyReward()]).score([make_group("AB")])
    assert reward.asked == []
    assert breakdown.components["stated"].tolist() == [[0.0, 0.0]]
    assert set(breakdown.seconds) == {"stated", "accuracy"}


def test_a_gate_that_is_not_for_the_group_stays_closed(make_group):
    suite = RewardSuite([Stated([1.0, 1.0], gate="accuracy"), AccuracyReward(problem_types=["OCR"])])
    assert suite.score([make_group("AA")]).total.tolist() == [[0.0, 0.0]]


def test_failures_of_a_routed_reward_name_the_group_that_it_was_asked_about(make_group):
    suite = RewardSuite([AccuracyReward(), Stated(None, problem_types=["OCR"])])
    groups = [make_group("AB", record_id="a"), make_group("AB", record_id="b", problem_type=ProblemType.OCR)]
    with pytest.raises(ValueError, match="'stated' on problem_id b returned None"):
        suite.score(groups)


@pytest.mark.parametrize(
    ("problem_types", "message"),
    [
        (["OCR", "essay"], r"'stated' has problem_types .*'essay'; it must be one of 'multiple choice'"),
        (["ocr"], "'ocr'; it must be one of"),
        ([], "'stated' has an empty list of problem_types"),
    ],
)
def test_routing_to_what_is_no_kind_of_question_is_refused(problem_types, message):
    with pytest.raises(ValueError, match=message):
        Stated([], problem_types=problem_types)


def test_a_reward_without_a_way_to_score_is_refused():
    class Silent(Reward):
        name = "silent"

    with pytest.raises(TypeError, match=r"Silent .*abstract method '?score"):
        Silent()


def test_a_reward_that_forgets_its_base_is_refused():
    class Forgetful(Stated):
        def __init__(self):
            self.limit = 3

    with pytest.raises(ValueError, match=r"Forgetful has no weight; its __init__ must call super\(\).__init__"):
        RewardSuite([Forgetful()])


@pytest.mark.parametrize("name", ["total", "truncation"])
def test_names_of_the_suites_own_are_refused(name):
    with pytest.raises(ValueError, match=f"A Stated is named '{name}', the name of the"):
        RewardSuite([Stated([1.0], name=name)])
