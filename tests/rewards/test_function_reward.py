import sys

import pytest

from rewards import AccuracyReward, FunctionReward
from rewards.base import RewardError
from rewards.suite import RewardSuite


def tokens_of_each(group):
    return [tokens / 100 for tokens in group.completion_tokens]


def tokens_of_one(group, index):
    return group.completion_tokens[index] / 100


@pytest.mark.parametrize(("function", "interface"), [(tokens_of_each, "group"), (tokens_of_one, "completion")])
def test_every_interface_scores_every_completion(make_group, function, interface):
    reward = FunctionReward(function, interface, weight=2.0)
    groups = [make_group("AB", tokens=[100, 150]), make_group("AB", tokens=[50, 0])]
    assert reward.score(groups[0], {}) == [1.0, 1.5]
    breakdown = RewardSuite([reward]).score(groups)
    assert breakdown.total.tolist() == [[2.0, 3.0], [1.0, 0.0]]
    assert list(breakdown.components) == [function.__name__]


def test_a_function_takes_gates_names_and_routes_like_any_reward(make_group):
    reward = FunctionReward(tokens_of_each, gate="accuracy", name="tokens", problem_types=["multiple choice"])
    breakdown = RewardSuite([AccuracyReward(weight=0.0), reward]).score([make_group("AB", tokens=[100, 150])])
    assert breakdown.contributions["tokens"].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("interface", "where"), [("group", "problem_id 7"), ("completion", "problem_id 7, completion 0")]
)
def test_a_failing_function_is_named_with_what_it_was_called_on(make_group, interface, where):
    def fails(*arguments):
        raise KeyError("speed")

    with pytest.raises(RewardError, match=f"^Reward 'fails' failed on {where}: KeyError: 'speed'"):
        RewardSuite([FunctionReward(fails, interface)]).score([make_group("AB")])


def test_a_function_of_the_wrong_count_is_refused(make_group):
    with pytest.raises(ValueError, match=r"'short' on problem_id 7 returned \[1.0\]; it must return 2 numbers"):
        RewardSuite([FunctionReward(lambda group: [1.0], name="short")]).score([make_group("AB")])


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "house_rewards.py").write_text("limit = 3\n\ndef brevity(group):\n    return [0.25, 0.75]\n")
    (tmp_path / "broken_rewards.py").write_text("import absent_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("house_rewards", "broken_rewards"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("user_module")
def test_a_dotted_path_finds_a_function_outside_the_repository(make_group):
    suite = RewardSuite([FunctionReward("house_rewards.brevity")])
    assert suite.score([make_group("AB")]).components["brevity"].tolist() == [[0.25, 0.75]]


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("brevity", "write module.function"),
        ("absent_rewards.brevity", "There is no module 'absent_rewards'; put its file into the working directory"),
        ("house_rewards.inner.brevity", "There is no module 'house_rewards.inner'"),
        ("house_rewards.brevty", r"house_rewards\.py has no 'brevty'"),
        ("house_rewards.limit", r"'house_rewards.limit', which is not a function but 3 in .*house_rewards\.py"),
    ],
)
def test_a_path_to_nothing_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        FunctionReward(function)


@pytest.mark.usefixtures("user_module")
def test_a_module_that_cannot_be_imported_says_why_itself():
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        FunctionReward("broken_rewards.brevity")


def test_an_unknown_interface_is_refused():
    with pytest.raises(ValueError, match=r"'tokens_of_one': interface is 'one'; allowed are 'group', 'completion'\."):
        FunctionReward(tokens_of_one, "one")
