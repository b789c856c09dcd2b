"""Scores of single answers: by hand, and 80 golden ones of the VSI-Bench authors' scorer and the released script."""

import json
from pathlib import Path

import pytest

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.benchmarks.vsibench import mean_relative_accuracy
from rewards.evaluation.scoring import float32_mean_relative_accuracy, predicted_answer, score_item

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vsibench_scores.json").read_text())


def scored(rule, problem_type, prediction, answer, benchmark="mmvu"):
    arguments = {"problem_type": problem_type, "categories": {}, "prediction": prediction, "answer": answer}
    return score_item(BENCHMARKS[benchmark], rule, **arguments)


@pytest.mark.parametrize("rule", ["official", "videorft"])
def test_golden_vsibench_items(rule):
    for row in GOLDEN["rows"]:
        score = score_item(
            BENCHMARKS["vsibench"],
            rule,
            problem_type=row["problem_type"],
            categories={"original_question_type": row["question_type"]},
            prediction=row["prediction"],
            answer=row["answer"],
        )
        assert score == pytest.approx(row[rule], abs=1e-6), row


def test_three_against_four_is_the_tie_that_separates_the_rules():
    # |3 - 4| / 4 = 0.25 = 1 - 0.75: "<=" passes theta 0.50 to 0.75 (6 of 10), "<" passes 0.50 to 0.70 (5 of 10).
    assert mean_relative_accuracy(3, 4) == pytest.approx(0.6)
    assert float32_mean_relative_accuracy(3, 4) == pytest.approx(0.5)


def test_mean_relative_accuracy_by_hand():
    # |8.8 - 10| / 10 = 0.12: passes 1 - theta = 0.50, 0.45, ..., 0.15, fails 0.10 and 0.05: 8 of 10.
    assert mean_relative_accuracy(8.8, 10) == pytest.approx(0.8)
    assert float32_mean_relative_accuracy(8.8, 10) == pytest.approx(0.8)
    # |26 - 10| / 10 = 1.6 fails all; an exact answer passes all, also where the released script divides by 0 + 1e-8.
    assert mean_relative_accuracy(26, 10) == 0
    assert mean_relative_accuracy(10, 10) == 1
    assert float32_mean_relative_accuracy(0, 0) == 1
    assert float32_mean_relative_accuracy(1, 0) == 0


def test_predicted_answer_falls_back_to_the_completion():
    assert predicted_answer("<think>x</think> <answer> B </answer>") == "B"
    assert predicted_answer(" B\n") == "B"
    assert predicted_answer("<answer></answer>") == "<answer></answer>"


@pytest.mark.parametrize(
    ("problem_type", "prediction", "answer", "score"),
    [
        ("multiple choice", "A", "A", 1),
        ("multiple choice", "a", "A", 0),
        ("multiple choice", "A.", "A", 0),
        ("numerical", "3.140", "3.14", 1),  # equal at two decimals
        ("numerical", "3.144", "3.14", 1),
        ("numerical", "3.0", "3", 0),  # only one of the two has a separator
        ("numerical", "1,200", "1,200.0", 1),
        ("numerical", "three", "3", 0),
        ("regression", "1,000", "1000", 1),
        ("regression", "3 m", "3", 0),
        ("free-form", "a dog", "a dog", 0),  # the script has no rule for it
        ("OCR", "STOP", "STOP", 0),
    ],
)
def test_videorft_rules(problem_type, prediction, answer, score):
    assert scored("videorft", problem_type, prediction, answer) == score


@pytest.mark.parametrize("problem_type", ["numerical", "regression"])
def test_gold_answers_must_be_numbers_where_numbers_are_compared(problem_type):
    with pytest.raises(ValueError, match="'four' is not a number"):
        scored("videorft", problem_type, "4", "four")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("rule", ["official", "videorft"])
def test_an_empty_gold_answer_is_an_error(rule, benchmark):
    with pytest.raises(ValueError, match="is empty"):
        scored(rule, "multiple choice", "A", " ", benchmark)


def test_unknown_names_list_what_is_allowed():
    with pytest.raises(ValueError, match="scoring rule is 'paper'; allowed are 'videorft', 'official'"):
        scored("paper", "OCR", "A", "A")
    with pytest.raises(ValueError, match="problem_type is 'choice'"):
        scored("official", "choice", "A", "A")
