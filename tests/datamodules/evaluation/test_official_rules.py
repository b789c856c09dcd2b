"""The rules of the benchmarks' authors, by hand; VSI-Bench's golden scores are in test_benchmark_scoring."""

import pytest

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.benchmarks.videommmu import delta_knowledge
from datamodules.evaluation.benchmarks.vsibench import mean_relative_accuracy
from rewards.evaluation.scoring import score_item


def official(benchmark: str, prediction: str, answer: str, problem_type: str = "multiple choice") -> float | None:
    arguments = {"problem_type": problem_type, "categories": {}, "prediction": prediction, "answer": answer}
    return score_item(BENCHMARKS[benchmark], "official", **arguments)


@pytest.mark.parametrize("gold", [0, -2])
def test_official_relative_error_needs_a_positive_gold_number(gold):
    with pytest.raises(ValueError, match="not positive"):
        mean_relative_accuracy(1, gold)


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
def test_official_rules_do_not_grade_what_needs_a_language_model(benchmark):
    assert official(benchmark, "a dog", "a dog", "free-form") is None


def test_vsibench_official_needs_a_known_question_type():
    with pytest.raises(ValueError, match="original_question_type is None"):
        official("vsibench", "A", "A")


def test_delta_knowledge_by_hand():
    # From 40 to 55: 15 of the 60 points that were missing. From 40 to 34: minus 6 of 60.
    assert delta_knowledge(40, 55) == pytest.approx(25)
    assert delta_knowledge(40, 34) == pytest.approx(-10)
    for before, after in [(100, 100), (-1, 50), (50, 101)]:
        with pytest.raises(ValueError, match="percent"):
            delta_knowledge(before, after)
