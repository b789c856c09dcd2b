"""Aggregates by hand and against golden ones."""

import json
from pathlib import Path

import pytest

from datamodules.evaluation.benchmarks import BENCHMARKS
from rewards.evaluation.metrics import ScoredItem, aggregate
from rewards.evaluation.scoring import score_item

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vsibench_scores.json").read_text())

CHOICE = "multiple choice"
VSIBENCH = BENCHMARKS["vsibench"]


def item(problem_id, score, problem_type=CHOICE, **categories):
    return ScoredItem(problem_id=str(problem_id), problem_type=problem_type, score=score, categories=categories)


def values(name, rule, items):
    """Mean -> value, where there is one."""
    means = aggregate(BENCHMARKS[name], rule, items)
    return {mean: facts.value for mean, facts in means.items() if facts.value is not None}


def counts(name, rule, items):
    """Mean -> items scored, items failed."""
    return {mean: (facts.scored, facts.failed) for mean, facts in aggregate(BENCHMARKS[name], rule, items).items()}


def golden_items(rule):
    return [
        item(
            index,
            score_item(
                VSIBENCH,
                rule,
                problem_type=row["problem_type"],
                categories={"original_question_type": row["question_type"]},
                prediction=row["prediction"],
                answer=row["answer"],
            ),
            row["problem_type"],
            original_question_type=row["question_type"],
        )
        for index, row in enumerate(GOLDEN["rows"])
    ]


@pytest.mark.parametrize("rule", ["official", "videorft"])
def test_golden_vsibench_aggregate(rule):
    items = golden_items(rule)
    result, expected = values("vsibench", rule, items), GOLDEN[rule]
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert counts("vsibench", "official", items)["overall"] == (80, 0)


def test_vsibench_overall_weighs_tasks_and_levels_equally():
    items = [
        item(1, 1.0, original_question_type="object_rel_direction_easy"),
        item(2, 1.0, original_question_type="object_rel_direction_easy"),
        item(3, 1.0, original_question_type="object_rel_direction_easy"),
        item(4, 0.0, original_question_type="object_rel_direction_medium"),
        item(5, 0.0, original_question_type="object_rel_direction_hard"),
        item(6, 0.6, "regression", original_question_type="object_counting"),
        item(7, 0.8, "regression", original_question_type="object_counting"),
    ]
    result = values("vsibench", "official", items)
    # Direction: (100 + 0 + 0) / 3 = 33.33, not 3 / 5. Counting: (60 + 80) / 2 = 70. Overall: (33.33 + 70) / 2 = 51.67.
    assert result["object_rel_direction_accuracy"] == pytest.approx(100 / 3)
    assert result["object_counting_MRA:.5:.95:.05"] == pytest.approx(70)
    assert result["overall"] == pytest.approx((100 / 3 + 70) / 2)
    assert result["original_question_type/object_rel_direction_easy"] == 100
    assert counts("vsibench", "official", items)["object_rel_direction_accuracy"] == (5, 0)


def test_failed_items_are_in_no_denominator_and_are_counted():
    items = [
        item(1, 1.0, duration="short"),
        item(2, 0.0, duration="short"),
        item(3, None, duration="short"),
        item(4, None, duration="long"),
        item(5, 1.0),
    ]
    # Overall, 2 of the 3 that were answered; short, 1 of 2; long has no mean of nothing, but its failure shows.
    assert values("videomme", "official", items) == pytest.approx({"overall": 200 / 3, "duration/short": 50})
    assert counts("videomme", "official", items) == {
        "overall": (3, 2),
        "duration/short": (2, 1),
        "duration/long": (0, 1),
    }


def test_a_vsibench_level_that_failed_as_a_whole_leaves_its_mean():
    items = [
        item(1, 1.0, original_question_type="object_rel_direction_easy"),
        item(2, None, original_question_type="object_rel_direction_hard"),
        item(3, None, original_question_type="route_planning"),
    ]
    result = values("vsibench", "official", items)
    assert result["overall"] == result["object_rel_direction_accuracy"] == 100
    assert counts("vsibench", "official", items)["object_rel_direction_accuracy"] == (1, 1)
    assert "route_planning_accuracy" not in result


def test_videorft_means_are_fractions_split_at_regression():
    items = [
        item(1, 1.0, track="Perception"),
        item(2, 0.0, "numerical", track="Adaptation"),
        item(3, 0.5, "regression", track="Adaptation"),
        item(4, None, "regression", track="Adaptation"),
    ]
    result = values("videommmu", "videorft", items)
    assert (result["mean_acc"], result["mean_mra"]) == (0.5, 0.5)
    found = counts("videommmu", "videorft", items)
    assert (found["mean_acc"], found["mean_mra"]) == ((2, 0), (1, 1))
    assert (result["track/Perception"], result["track/Adaptation"]) == (1.0, 0.25)


def test_tempcompass_by_task_and_by_aspect():
    items = [
        item(1, 1.0, task="multi-choice", aspect="action"),
        item(2, 0.0, task="yes_no", aspect="action"),
        item(3, 0.0, task="yes_no", aspect="speed"),
        item(4, 1.0, task="caption_matching", aspect="speed"),
        item(5, None, task="caption_matching", aspect="attribute_change"),
        item(6, 1.0, task="yes_no", aspect="order"),
    ]
    result, found = values("tempcompass", "official", items), counts("tempcompass", "official", items)
    # Overall 3 of 5 answered; yes/no 1 of 3; the item that failed leaves its aspect without a mean.
    assert result["overall"] == pytest.approx(60)
    assert result["task/yes_no"] == pytest.approx(100 / 3)
    assert (result["task/caption_matching"], found["task/caption_matching"]) == (100, (1, 1))
    assert (result["aspect/action"], result["aspect/speed"], result["aspect/order"]) == (50, 50, 100)
    assert "aspect/attribute_change" not in result
    assert found["aspect/attribute_change"] == (0, 1)


def test_a_mean_over_nothing_is_absent():
    assert aggregate(BENCHMARKS["mvbench"], "videorft", [item(1, 1.0)]).keys() == {"mean_acc"}
    assert aggregate(BENCHMARKS["mvbench"], "official", []) == {}
    assert aggregate(VSIBENCH, "official", []) == {}


def test_mmvu_never_reports_an_overall_that_a_language_model_should_have_graded():
    result = values("mmvu", "official", [item(1, 1.0), item(2, 0.0)])
    assert result["exact_letter_accuracy"] == 50 and "overall" not in result


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_scores_out_of_range_are_refused(score):
    with pytest.raises(ValueError, match=f"score of problem_id 7 is {score}"):
        item(7, score)


def test_vsibench_official_refuses_unknown_tasks():
    with pytest.raises(ValueError, match="original_question_type is 'navigation'"):
        aggregate(VSIBENCH, "official", [item(1, 1.0, original_question_type="navigation")])
    with pytest.raises(ValueError, match="original_question_type is None"):
        aggregate(VSIBENCH, "official", [item(1, 1.0)])
