"""Intervals and paired tests, against closed forms and against a plain bootstrap of the aggregate itself."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from datamodules.evaluation.benchmarks.mvbench import MVBENCH
from datamodules.evaluation.benchmarks.videomme import VIDEOMME
from datamodules.evaluation.benchmarks.vsibench import VSIBENCH
from rewards.evaluation.metrics import ScoredItem, aggregate
from rewards.evaluation.statistics import bootstrap_intervals, compare_runs, mcnemar_exact

DIRECTIONS = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")


def rows_of(scores, name="", **categories):
    return [
        ScoredItem(problem_id=f"{name}{index}", problem_type="multiple choice", score=score, categories=categories)
        for index, score in enumerate(scores)
    ]


def test_interval_of_a_share_is_the_binomial_one():
    # 200 of 400 right: standard error 100 * sqrt(0.5 * 0.5 / 400) = 2.5 points, so 95 % is 50 -+ 4.9.
    interval = bootstrap_intervals(MVBENCH, "official", rows_of([1.0, 0.0] * 200))["overall"]
    assert interval.low == pytest.approx(50 - 1.96 * 2.5, abs=0.5)
    assert interval.high == pytest.approx(50 + 1.96 * 2.5, abs=0.5)


def test_interval_of_a_composite_equals_aggregating_each_resample():
    generator = np.random.default_rng(1)
    rows = [
        row
        for task, chance in zip((*DIRECTIONS, "route_planning"), (0.2, 0.5, 0.8, 0.6), strict=True)
        for row in rows_of((generator.random(25) < chance).astype(float).tolist(), original_question_type=task)
    ]
    overalls = [
        aggregate(VSIBENCH, "official", [rows[index] for index in generator.integers(0, len(rows), len(rows))])[
            "overall"
        ].value
        for _ in range(1000)
    ]
    low, high = np.quantile(overalls, (0.025, 0.975))
    interval = bootstrap_intervals(VSIBENCH, "official", rows)["overall"]
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1.5)


def test_intervals_are_seeded():
    rows = rows_of([1.0, 0.0, 0.0] * 30, duration="short")
    first = bootstrap_intervals(VIDEOMME, "videorft", rows)
    assert first == bootstrap_intervals(VIDEOMME, "videorft", rows)
    assert set(first) == {"mean_acc", "duration/short"}
    assert first["mean_acc"] == first["duration/short"]  # the same items
    assert first["mean_acc"].low < 1 / 3 < first["mean_acc"].high


def test_failed_items_are_not_drawn():
    rows = rows_of([1.0, None, 1.0, None])
    interval = bootstrap_intervals(MVBENCH, "official", rows)["overall"]
    assert (interval.low, interval.high) == (100, 100)  # drawn as 0 or as empty, they would lower it
    assert bootstrap_intervals(MVBENCH, "official", rows_of([None])) == {}


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),  # 2 * C(5, 0) / 2^5
        (1, 5, 14 / 64),  # 2 * (1 + 6) / 2^6
        (5, 1, 14 / 64),
        (2, 8, 112 / 1024),  # 2 * (1 + 10 + 45) / 2^10
    ],
)
def test_mcnemar_by_hand(first, second, p_value):
    assert mcnemar_exact(first, second) == pytest.approx(p_value, rel=1e-12)


def test_mcnemar_of_many_items_agrees_with_the_normal_approximation():
    # z = (|2100 - 1900| - 1) / sqrt(4000) = 3.1465, two-sided p = 0.00165.
    assert mcnemar_exact(1900, 2100) == pytest.approx(0.00165, abs=2e-5)


def test_comparison_pairs_by_id_and_leaves_failures_out():
    first = rows_of([1.0, 1.0, 0.0, 0.0, None, 1.0])
    second = rows_of([1.0, 0.0, 1.0, 1.0, 1.0, None])[::-1]
    result = compare_runs(MVBENCH, "official", first, second)
    assert (result.items, result.failed) == (4, 2)
    assert (result.first_mean, result.second_mean, result.difference.value) == (0.5, 0.75, 0.25)
    assert (result.only_first_right, result.only_second_right) == (1, 2)
    assert result.p_value == 1.0  # 2 * (1 + 3) / 2^3 = 1
    assert result.difference.interval.low < 0.25 < result.difference.interval.high


def test_comparison_interval_is_that_of_the_paired_differences():
    # 400 items: second right alone on 60, first alone on 20, equal on 320. Mean 0.1, mean square 80 / 400 = 0.2:
    # standard error sqrt((0.2 - 0.01) / 400) = 0.0218. Unpaired shares of 0.5 would give about 0.035.
    first = rows_of([0.0] * 60 + [1.0] * 20 + [1.0, 0.0] * 160)
    second = rows_of([1.0] * 60 + [0.0] * 20 + [1.0, 0.0] * 160)
    interval = compare_runs(MVBENCH, "official", first, second).difference.interval
    error = 1.96 * sqrt(0.19 / 400)
    assert (interval.low, interval.high) == pytest.approx((0.1 - error, 0.1 + error), abs=0.005)


def test_differences_of_all_means_are_paired():
    # 100 items per task. Directions: all levels equal in both runs. Route: the second run is right on 10 items more.
    first, second = [], []
    for task in (*DIRECTIONS, "route_planning"):
        right = 50 if task == "route_planning" else 40
        for run, number in ((first, 40), (second, right)):
            run += rows_of([1.0] * number + [0.0] * (100 - number), name=task, original_question_type=task)
    second[-1] = replace(second[-1], score=None)  # a right answer of neither run: route becomes 40 and 50 of 99
    result = compare_runs(VSIBENCH, "official", first, second[::-1]).means
    assert result["object_rel_direction_accuracy"].value == 0
    assert result["object_rel_direction_accuracy"].interval.high == 0  # the same items are drawn in both runs
    assert result["route_planning_accuracy"].value == pytest.approx(1000 / 99)
    assert result["overall"].value == pytest.approx(500 / 99)
    # A share of 10 / 99 has standard error 100 * sqrt(0.101 * 0.899 / 99) = 3.03 points; overall, half of that.
    assert result["overall"].interval.low == pytest.approx((1000 / 99 - 1.96 * 3.03) / 2, abs=0.5)
    assert result["overall"].interval.high == pytest.approx((1000 / 99 + 1.96 * 3.03) / 2, abs=0.5)


def test_differences_need_equal_breakdowns():
    with pytest.raises(ValueError, match="differ between the runs"):
        compare_runs(VIDEOMME, "official", rows_of([1.0], duration="short"), rows_of([1.0], duration="long"))


def test_scores_between_0_and_1_have_no_mcnemar_test():
    result = compare_runs(MVBENCH, "official", rows_of([0.5, 1.0]), rows_of([0.7, 1.0]))
    assert (result.p_value, result.only_first_right, result.only_second_right) == (None, None, None)
    assert result.difference.value == pytest.approx(0.1)


def test_runs_must_hold_the_same_items():
    with pytest.raises(ValueError, match=r"2 only in the first \(5 items\), 0 only in the second \(3 items\)"):
        compare_runs(MVBENCH, "official", rows_of([1.0] * 5), rows_of([1.0] * 3))
    with pytest.raises(ValueError, match="second run has 1 items whose problem_id occurred before"):
        compare_runs(MVBENCH, "official", rows_of([1.0]), rows_of([1.0]) * 2)
    with pytest.raises(ValueError, match="None of the 2 items was answered in both runs"):
        compare_runs(MVBENCH, "official", rows_of([None, 1.0]), rows_of([1.0, None]))
