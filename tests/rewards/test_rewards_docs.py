"""The snippets of docs/rewards.md are configurations that build, and its tables say what the code does."""

import importlib
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from rewards import Reward
from rewards.accuracy import accuracy_reward
from rewards.answer_format import wrap_answer
from rewards.registry import REWARDS
from rewards.suite import RewardSuite, SuiteConfig

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
SNIPPETS = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "my_rewards" not in text]


def built_suite(snippet):
    arguments = yaml.safe_load(snippet)["model"]["init_args"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=list[Reward])
    parser.add_argument("--suite", type=SuiteConfig, default=SuiteConfig())
    known = {name: value for name, value in arguments.items() if name in ("rewards", "suite")}
    built = parser.instantiate_classes(parser.parse_object(known))
    return RewardSuite(built.rewards, built.suite)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_builds_a_suite_that_scores(snippet, make_group):
    suite = built_suite(snippet)
    breakdown = suite.score([make_group("AAB")])
    assert set(breakdown.components) == set(suite.rewards)


def test_the_snippets_show_weights_gates_routing_normalization_truncation_and_parsing():
    suites = [built_suite(snippet) for snippet in SNIPPETS]
    rewards = [reward for suite in suites for reward in suite.rewards.values()]
    assert {reward.weight for reward in rewards} >= {0.5, 1.0}
    assert "format" in {reward.gate for reward in rewards}
    assert {frozenset({"numerical", "regression"})} <= {reward.problem_types for reward in rewards}
    assert ("per_reward", "penalize", 0.5) in {
        (suite.config.normalization, suite.config.truncation, suite.config.truncation_penalty) for suite in suites
    }
    assert "tolerant" in {getattr(reward, "parsing", "strict") for reward in rewards}


def test_the_table_lists_every_reward_under_a_path_that_leads_to_it():
    rows = re.findall(r"^\| `(\w+)` \| `(rewards[\w.]*)\.(\w+)` \|", PAGE, re.MULTILINE)
    listed = {name: getattr(importlib.import_module(module), class_name) for name, module, class_name in rows}
    assert {name: listed.get(name) for name in REWARDS} == REWARDS
    assert {name: reward_class.name for name, reward_class in listed.items()} == {name: name for name in listed}


@pytest.mark.parametrize(
    ("kind", "problem_type", "gold"),
    [('multiple choice, gold "A"', "multiple choice", "A"), ('numerical, gold "1200"', "numerical", "1200")],
)
def test_the_table_of_tolerant_answers_is_what_is_accepted_and_refused(kind, problem_type, gold):
    cells = next(line for line in PAGE.splitlines() if line.startswith(f"| {kind} |")).split("|")
    accepted, refused = (re.findall(r"`([^`]+)`", cell.split(";")[0]) for cell in cells[2:4])
    assert len(accepted) >= 4
    assert len(refused) >= 4
    for answers, score in ((accepted, 1.0), (refused, 0.0)):
        for answer in answers:
            given = problem_type, wrap_answer(answer), wrap_answer(gold)
            assert accuracy_reward(*given, parsing="tolerant") == score, answer
