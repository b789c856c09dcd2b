import json
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.accuracy import ACCURACY_FUNCTIONS, AccuracyReward, accuracy_reward
from rewards.answer_format import wrap_answer
from rewards.format import format_reward
from rewards.types import ProblemType

GOLDEN_ROWS = json.loads((Path(__file__).parents[1] / "golden/reference_rewards.json").read_text())["rows"]


def is_exact_zero(row: dict) -> bool:
    """The one row in which the published reward is wrong: a correct regression answer of 0."""
    zero = wrap_answer("0")
    return row["problem_type"] == "regression" and row["solution"] == zero and row["completion"].endswith(zero)


@pytest.mark.parametrize("row", GOLDEN_ROWS, ids=lambda row: f"{row['problem_type']}-{row['completion'][-24:]}")
def test_published_rewards_are_reproduced(row):
    expected = 1.0 if is_exact_zero(row) else row["accuracy"]
    accuracy = accuracy_reward(row["problem_type"], row["completion"], row["solution"])
    assert accuracy == pytest.approx(expected, abs=1e-6)
    assert format_reward(row["completion"]) == row["format"]


def test_golden_rows_cover_every_problem_type_and_the_one_difference():
    assert {row["problem_type"] for row in GOLDEN_ROWS} >= set(ProblemType)
    assert sum(is_exact_zero(row) for row in GOLDEN_ROWS) == 1


def test_every_problem_type_has_its_function():
    assert set(ACCURACY_FUNCTIONS) == set(ProblemType)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("9", "10", 0.9),  # 1 - 1/10
        ("11", "-10", 0.0),  # |11 + 10| / 10 is above 1
        ("-9", "-10", 0.9),  # the gold answer's magnitude divides
        ("1e-9", "2e-9", 0.5),  # no constant is added, so small answers keep their scale
        ("0", "0", 1.0),
        ("1e-12", "0", 0.0),
        ("nan", "10", 0.0),
        ("inf", "10", 0.0),
        ("ten", "10", 0.0),
    ],
)
def test_regression(prediction, gold, expected):
    assert accuracy_reward("regression", wrap_answer(prediction), wrap_answer(gold)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("2.499", "2.50", 1.0),  # both round to 2.50
        ("2.49", "2.50", 0.0),
        ("5.0", "5", 0.0),  # only one has a separator
        ("1,5", "15.0", 1.0),  # commas separate thousands, wherever they stand
        ("nan", "3", 0.0),
        ("three", "3", 0.0),
    ],
)
def test_numerical(prediction, gold, expected):
    assert accuracy_reward("numerical", wrap_answer(prediction), wrap_answer(gold)) == expected


@pytest.mark.parametrize("problem_type", ["numerical", "regression"])
@pytest.mark.parametrize("completion", [wrap_answer("3"), wrap_answer("three"), "no answer"])
def test_gold_answer_that_is_no_number_is_refused_whatever_the_completion(problem_type, completion):
    with pytest.raises(ValueError, match="'5 apples' is not a number"):
        accuracy_reward(problem_type, completion, wrap_answer("5 apples"))


@pytest.mark.parametrize("problem_type", list(ProblemType))
@pytest.mark.parametrize("solution", ["A", "", wrap_answer(" ")])
def test_solution_without_an_answer_is_refused(problem_type, solution):
    with pytest.raises(ValueError, match="has no answer"):
        accuracy_reward(problem_type, "no answer either", solution)


@pytest.mark.parametrize("problem_type", list(ProblemType))
def test_completion_without_an_answer_scores_zero(problem_type):
    assert accuracy_reward(problem_type, "3", wrap_answer("3")) == 0.0


def test_reward_scores_each_completion_by_the_groups_problem_type(make_group):
    group = make_group(["10", "9", "x"], gold="10", problem_type=ProblemType.REGRESSION)
    assert AccuracyReward().score(group, {}) == pytest.approx([1.0, 0.9, 0.0])


@pytest.mark.parametrize(
    ("problem_type", "prediction", "gold", "strict", "tolerant"),
    [
        ("multiple choice", "A", "A", 1.0, 1.0),
        ("multiple choice", "a", "A", 0.0, 1.0),
        ("multiple choice", "(A)", "A", 0.0, 1.0),
        ("multiple choice", "A. left", "A", 0.0, 1.0),
        ("multiple choice", "A", "A. left", 0.0, 1.0),
        ("multiple choice", "**A**", "A", 0.0, 1.0),
        ("multiple choice", "B.", "A", 0.0, 0.0),
        ("multiple choice", "A or B", "A", 0.0, 0.0),
        ("multiple choice", "A and C", "A and C", 1.0, 1.0),  # what strict accepts stays right
        ("multiple choice", "left", "A", 0.0, 0.0),
        ("numerical", "1,200", "1200", 0.0, 1.0),
        ("numerical", "5.0", "5", 0.0, 1.0),
        ("numerical", "**5**", "5", 0.0, 1.0),
        ("numerical", "5.01", "5", 0.0, 0.0),
        ("numerical", "5 apples", "5", 0.0, 0.0),
        ("numerical", "1,5", "15", 0.0, 0.0),
        ("regression", "**9**", "10", 0.0, 0.9),  # 1 - 1/10
        ("regression", "9 m", "10", 0.0, 0.0),
        ("OCR", "stop", "STOP", 0.0, 0.0),
    ],
)
def test_tolerant_parsing_accepts_other_spellings_and_nothing_else(problem_type, prediction, gold, strict, tolerant):
    answer = problem_type, wrap_answer(prediction), wrap_answer(gold)
    assert accuracy_reward(*answer) == pytest.approx(strict)
    assert accuracy_reward(*answer, parsing="tolerant") == pytest.approx(tolerant)


@pytest.mark.parametrize("row", GOLDEN_ROWS, ids=lambda row: f"{row['problem_type']}-{row['completion'][-24:]}")
def test_tolerant_parsing_never_scores_lower(row):
    answer = row["problem_type"], row["completion"], row["solution"]
    assert accuracy_reward(*answer, parsing="tolerant") >= accuracy_reward(*answer)


def test_the_reward_parses_as_told_and_compares_with_the_records_options(make_group):
    group = replace(make_group(["A", "a. left", "a. right"]), options=("A. left", "B. right"))
    assert AccuracyReward().score(group, {}) == [1.0, 0.0, 0.0]
    assert AccuracyReward(parsing="tolerant").score(group, {}) == [1.0, 1.0, 0.0]


def test_unknown_parsing_is_refused():
    with pytest.raises(ValueError, match="'accuracy': parsing is 'lenient'; allowed are 'strict', 'tolerant'"):
        AccuracyReward(parsing="lenient")
