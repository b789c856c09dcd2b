"""Scores of single answers: by hand, and 80 golden ones of the VSI-Bench authors' scorer and the released script."""

import json
from pathlib import Path

import pytest

from rewards.evaluation.scoring import (
    OFFICIAL_RULES,
    float32_mean_relative_accuracy,
    mean_relative_accuracy,
    predicted_answer,
    score_item,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vsibench_scores.json").read_text())


def official(benchmark: str, prediction: str, answer: str, problem_type: str = "multiple choice") -> float:
    return score_item(
        benchmark, "official", problem_type=problem_type, question_type=None, prediction=prediction, answer=answer
    )


def videorft(problem_type: str, prediction: str, answer: str) -> float:
    return score_item(
        "mmvu", "videorft", problem_type=problem_type, question_type=None, prediction=prediction, answer=answer
    )


@pytest.mark.parametrize("protocol", ["official", "videorft"])
def test_golden_vsibench_items(protocol):
    for row in GOLDEN["rows"]:
        score = score_item(
            "vsibench",
            protocol,
            problem_type=row["problem_type"],
            question_type=row["question_type"],
            prediction=row["prediction"],
            answer=row["answer"],
        )
        assert score == pytest.approx(row[protocol], abs=1e-6), row


def test_three_against_four_is_the_tie_that_separates_the_protocols():
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


@pytest.mark.parametrize("gold", [0, -2])
def test_official_relative_error_needs_a_positive_gold_number(gold):
    with pytest.raises(ValueError, match="not positive"):
        mean_relative_accuracy(1, gold)


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
    assert videorft(problem_type, prediction, answer) == score


@pytest.mark.parametrize("problem_type", ["numerical", "regression"])
def test_gold_answers_must_be_numbers_where_numbers_are_compared(problem_type):
    with pytest.raises(ValueError, match="'four' is not a number"):
        videorft(problem_type, "4", "four")


@pytest.mark.parametrize(
    ("prediction", "score"), [("B", 1), ("(B)", 1), ("B. left", 1), ("b", 1), ("", 0), ("A or B", 0), ("left", 0)]
)
def test_videommmu_reads_one_option_or_none(prediction, score):
    assert official("videommmu", prediction, "B") == score


@pytest.mark.parametrize(("prediction", "score"), [("1200.0", 1), ("1,200.004", 1), ("1201", 0), ("1200 m", 0)])
def test_videommmu_numbers_at_two_decimals(prediction, score):
    assert official("videommmu", prediction, "1200", "numerical") == score


@pytest.mark.parametrize(("prediction", "score"), [("E", 1), ("e", 0), ("E.", 0), ("", 0)])
def test_mmvu_is_exact_letter(prediction, score):
    assert official("mmvu", prediction, "E") == score


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("A", 1),
        ("a.", 1),
        ("(A) the door", 1),
        ("A) the door", 1),
        ("(A),", 1),  # contains "(a)"
        ("A, the door", 0),  # "a," is no piece of "(a)"
        ("B", 0),
        ("", 0),
        ("( A", 0),
    ],
)
def test_mvbench_compares_the_first_word(prediction, score):
    assert official("mvbench", prediction, "A") == score


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("C", "C", 1),
        ("C. faster", "C", 1),
        ("C) faster", "C. faster", 1),
        ("C", "C. faster", 1),
        ("c", "C", 0),
        ("Answer: C", "C", 0),
        ("Yes, it does.", "yes", 1),
        ("No", "yes", 0),
        ("It does, yes", "yes", 0),
        ("Caption A.", "Caption A: a red car", 1),
        ("a red car", "Caption A: a red car", 1),
        ("A) a red car", "Caption A: a red car", 1),
        ("Caption B", "Caption A: a red car", 0),
        ("red car", "Caption A: a red car", 0),
    ],
)
def test_tempcompass_rules_by_the_spelling_of_the_gold_answer(prediction, answer, score):
    assert official("tempcompass", prediction, answer) == score


def test_tempcompass_refuses_a_gold_answer_of_no_known_spelling():
    with pytest.raises(ValueError, match="Caption A: text"):
        official("tempcompass", "a red car", "a red car")


@pytest.mark.parametrize(
    ("prediction", "score"), [("C", 1), ("The answer is (C).", 1), ("c", 0), ("", 0), ("B or C", 0), ("Best: C", 0)]
)
def test_videomme_takes_the_first_capital_of_the_options(prediction, score):
    assert official("videomme", prediction, "C") == score


@pytest.mark.parametrize("benchmark", ["videommmu", "mmvu", "mvbench", "tempcompass", "videomme"])
def test_official_rules_refuse_what_needs_a_language_model(benchmark):
    with pytest.raises(ValueError, match="'free-form'"):
        official(benchmark, "a dog", "a dog", "free-form")


def test_vsibench_official_needs_a_known_question_type():
    with pytest.raises(ValueError, match="original_question_type is None"):
        official("vsibench", "A", "A")


@pytest.mark.parametrize("benchmark", OFFICIAL_RULES)
def test_an_empty_gold_answer_is_an_error(benchmark):
    with pytest.raises(ValueError, match="is empty"):
        official(benchmark, "A", " ")


def test_unknown_names_list_what_is_allowed():
    with pytest.raises(ValueError, match="benchmark is 'vsi'; it must be one of 'vsibench'"):
        official("vsi", "A", "A")
    with pytest.raises(ValueError, match="protocol is 'paper'; it must be one of 'videorft', 'official'"):
        score_item("mmvu", "paper", problem_type="OCR", question_type=None, prediction="A", answer="A")
    with pytest.raises(ValueError, match="problem_type is 'choice'"):
        official("mmvu", "A", "A", "choice")
