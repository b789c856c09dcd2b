import pytest
from jsonargparse import ArgumentParser

import rewards
from rewards import LengthReward, Reward
from rewards.registry import REWARDS, register, registered
from rewards.suite import RewardSuite
from rewards.types import ProblemType


def test_registry_names_are_the_rewards_own_names():
    assert {name: reward_class().name for name, reward_class in REWARDS.items()} == {name: name for name in REWARDS}


def test_registered_rewards_can_be_named_in_a_yaml():
    assert all(getattr(rewards, reward_class.__name__) is reward_class for reward_class in REWARDS.values())


def test_registered_rewards_work_together_with_their_defaults(make_group):
    breakdown = RewardSuite([reward_class() for reward_class in REWARDS.values()]).score([make_group("AAB")])
    # accuracy 1 + format 1 + length 0.2; the wrong answer keeps the format only
    assert breakdown.total.tolist() == [pytest.approx([2.2, 2.2, 1.0])]


def test_list_of_rewards_is_built_from_a_configuration():
    parser = ArgumentParser()
    parser.add_argument("--rewards", type=list[Reward])
    configuration = [
        {"class_path": "rewards.AccuracyReward"},
        {"class_path": "rewards.FormatReward", "init_args": {"weight": 0.5, "gate": "accuracy"}},
        {"class_path": "rewards.LengthReward", "init_args": {"name": "brevity", "max_tokens": 400}},
    ]
    built = parser.instantiate_classes(parser.parse_object({"rewards": configuration})).rewards
    suite = RewardSuite(built)
    assert list(suite.rewards) == ["accuracy", "format", "brevity"]
    assert (suite.rewards["format"].weight, suite.rewards["format"].gate) == (0.5, "accuracy")
    assert isinstance(suite.rewards["brevity"], LengthReward)
    assert suite.rewards["brevity"].max_tokens == 400


def test_unknown_problem_type_lists_the_known_ones():
    with pytest.raises(ValueError, match="'essay'; it must be one of 'multiple choice', 'numerical', 'OCR'"):
        ProblemType("essay")


class Halves(Reward):
    """Half a point for everybody."""

    def score(self, group, raw):
        return [0.5] * len(group.completions)


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr("rewards.registry.REWARDS", dict(REWARDS))
    monkeypatch.setattr(Halves, "name", "")


@pytest.mark.usefixtures("own_registry")
def test_a_registered_class_is_built_by_its_name(make_group):
    assert register("halves")(Halves) is Halves
    register("halves")(Halves)  # its module loaded anew
    reward = registered("halves", options={"weight": 3.0})
    assert RewardSuite([reward]).score([make_group("AB")]).contributions["halves"].tolist() == [[1.5, 1.5]]


def test_our_own_rewards_are_built_by_name_too():
    reward = registered("length", options={"max_tokens": 400})
    assert isinstance(reward, LengthReward)
    assert reward.max_tokens == 400


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    ("name", "decorated", "message"),
    [
        ("accuracy", Halves, r"'accuracy' is taken by rewards.accuracy.AccuracyReward;"),
        ("function", len, "not a subclass of rewards.Reward. A function needs no registration"),
        ("other", ArgumentParser, "not a subclass of rewards.Reward"),
    ],
)
def test_what_cannot_be_registered_is_refused(name, decorated, message):
    with pytest.raises(ValueError, match=message):
        register(name)(decorated)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "acuracy"}, "as 'acuracy'; there are 'accuracy', 'format', .*Name the module"),
        ({"reward": "accuracy", "module": "absent_rewards"}, "no module 'absent_rewards'"),
        (
            {"reward": "length", "options": {"max_token": 3}},
            "'length' cannot be built with the options .*'max_token'",
        ),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        registered(**arguments)
