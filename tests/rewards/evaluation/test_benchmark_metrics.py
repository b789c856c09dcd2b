"""Aggregates by hand and against golden ones, and the metric that gathers rows of several ranks."""

import json
from pathlib import Path

import pytest
import torch

from rewards.evaluation.metrics import BenchmarkMetric, aggregate, delta_knowledge
from rewards.evaluation.scoring import score_item

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vsibench_scores.json").read_text())

CHOICE = "multiple choice"


def row(problem_id, score, problem_type=CHOICE, **fields):
    return {"problem_id": problem_id, "problem_type": problem_type, "score": score, **fields}


def golden_rows(protocol: str) -> list[dict]:
    return [
        row(
            index,
            score_item(
                "vsibench",
                protocol,
                problem_type=item["problem_type"],
                question_type=item["question_type"],
                prediction=item["prediction"],
                answer=item["answer"],
            ),
            item["problem_type"],
            original_question_type=item["question_type"],
        )
        for index, item in enumerate(GOLDEN["rows"])
    ]


@pytest.mark.parametrize("protocol", ["official", "videorft"])
def test_golden_vsibench_aggregate(protocol):
    result = aggregate("vsibench", protocol, golden_rows(protocol))
    expected = GOLDEN[protocol]
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert (result["scored"], result["failed"]) == (80, 0)


def test_vsibench_overall_weighs_tasks_and_levels_equally():
    rows = [
        row(1, 1.0, original_question_type="object_rel_direction_easy"),
        row(2, 1.0, original_question_type="object_rel_direction_easy"),
        row(3, 1.0, original_question_type="object_rel_direction_easy"),
        row(4, 0.0, original_question_type="object_rel_direction_medium"),
        row(5, 0.0, original_question_type="object_rel_direction_hard"),
        row(6, 0.6, "regression", original_question_type="object_counting"),
        row(7, 0.8, "regression", original_question_type="object_counting"),
    ]
    result = aggregate("vsibench", "official", rows)
    # Direction: (100 + 0 + 0) / 3 = 33.33, not 3 / 5. Counting: (60 + 80) / 2 = 70. Overall: (33.33 + 70) / 2 = 51.67.
    assert result["object_rel_direction_accuracy"] == pytest.approx(100 / 3)
    assert result["object_counting_MRA:.5:.95:.05"] == pytest.approx(70)
    assert result["overall"] == pytest.approx((100 / 3 + 70) / 2)
    assert result["original_question_type/object_rel_direction_easy"] == 100
    assert result["scored/object_rel_direction_accuracy"] == 5


def test_failed_items_are_in_no_denominator_and_are_counted():
    rows = [
        row(1, 1.0, duration="short"),
        row(2, 0.0, duration="short"),
        row(3, None, duration="short"),
        row(4, None, duration="long"),
        row(5, 1.0, duration=None),
    ]
    assert aggregate("videomme", "official", rows) == pytest.approx(
        {
            "overall": 200 / 3,  # 2 of the 3 that were answered
            "duration/short": 50,  # 1 of 2
            "scored": 3,
            "failed": 2,
            "scored/overall": 3,
            "failed/overall": 2,
            "scored/duration/short": 2,
            "failed/duration/short": 1,
            "scored/duration/long": 0,  # no mean of nothing, but the failure shows
            "failed/duration/long": 1,
        }
    )


def test_a_vsibench_level_that_failed_as_a_whole_leaves_its_mean():
    rows = [
        row(1, 1.0, original_question_type="object_rel_direction_easy"),
        row(2, None, original_question_type="object_rel_direction_hard"),
        row(3, None, original_question_type="route_planning"),
    ]
    result = aggregate("vsibench", "official", rows)
    assert result["overall"] == result["object_rel_direction_accuracy"] == 100
    assert result["failed/object_rel_direction_accuracy"] == 1
    assert "route_planning_accuracy" not in result


def test_videorft_means_are_fractions_split_at_regression():
    rows = [
        row(1, 1.0, track="Perception"),
        row(2, 0.0, "numerical", track="Adaptation"),
        row(3, 0.5, "regression", track="Adaptation"),
        row(4, None, "regression", track="Adaptation"),
    ]
    result = aggregate("videommmu", "videorft", rows)
    assert (result["mean_acc"], result["mean_mra"]) == (0.5, 0.5)
    assert (result["scored/mean_acc"], result["scored/mean_mra"], result["failed/mean_mra"]) == (2, 1, 1)
    assert (result["track/Perception"], result["track/Adaptation"]) == (1.0, 0.25)


def test_tempcompass_by_task_and_by_aspect():
    rows = [
        row(1, 1.0, task="multi-choice", aspect="action"),
        row(2, 0.0, task="yes_no", aspect="action"),
        row(3, 0.0, task="yes_no", aspect="speed"),
        row(4, 1.0, task="caption_matching", aspect="speed"),
        row(5, None, task="caption_matching", aspect="attribute_change"),
        row(6, 1.0, task="yes_no", aspect="order"),
    ]
    result = aggregate("tempcompass", "official", rows)
    # Overall 3 of 5 answered; yes/no 1 of 3; the item that failed leaves its aspect without a mean.
    assert result["overall"] == pytest.approx(60)
    assert result["task/yes_no"] == pytest.approx(100 / 3)
    assert (result["task/caption_matching"], result["failed/task/caption_matching"]) == (100, 1)
    assert (result["aspect/action"], result["aspect/speed"], result["aspect/order"]) == (50, 50, 100)
    assert "aspect/attribute_change" not in result
    assert result["failed/aspect/attribute_change"] == 1


def test_a_mean_over_nothing_is_absent():
    result = aggregate("mvbench", "videorft", [row(1, 1.0)])
    assert "mean_mra" not in result and result["scored/mean_mra"] == 0
    assert aggregate("mvbench", "official", []) == {
        "scored": 0,
        "failed": 0,
        "scored/overall": 0,
        "failed/overall": 0,
    }


def test_mmvu_never_reports_an_overall_that_a_language_model_should_have_graded():
    result = aggregate("mmvu", "official", [row(1, 1.0), row(2, 0.0)])
    assert result["exact_letter_accuracy"] == 50 and "overall" not in result


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"problem_id": 7, "problem_type": CHOICE}, "problem_id 7 has no score"),
        (row(7, 1.5), "score of problem_id 7 is 1.5"),
        (row(7, float("nan")), "score of problem_id 7 is nan"),
        ({"problem_id": 7, "score": 1.0}, "problem_id 7 has no problem_type"),
    ],
)
def test_rows_that_cannot_be_aggregated(bad, message):
    with pytest.raises(ValueError, match=message):
        aggregate("mvbench", "videorft", [bad])


def test_vsibench_official_refuses_unknown_tasks():
    with pytest.raises(ValueError, match="original_question_type is 'navigation'"):
        aggregate("vsibench", "official", [row(1, 1.0, original_question_type="navigation")])


def test_delta_knowledge_by_hand():
    # From 40 to 55: 15 of the 60 points that were missing. From 40 to 34: minus 6 of 60.
    assert delta_knowledge(40, 55) == pytest.approx(25)
    assert delta_knowledge(40, 34) == pytest.approx(-10)
    for before, after in [(100, 100), (-1, 50), (50, 101)]:
        with pytest.raises(ValueError, match="percent"):
            delta_knowledge(before, after)


@pytest.fixture
def rows() -> list[dict]:
    return golden_rows("official")


def metric_of(*batches, **fields) -> BenchmarkMetric:
    metric = BenchmarkMetric("vsibench", "official", **fields)
    for batch in batches:
        metric.update(batch)
    return metric


def test_metric_equals_the_function_whatever_the_batches(rows):
    expected = {name: torch.tensor(value, dtype=torch.float64) for name, value in GOLDEN["official"].items()}
    whole, parts = metric_of(rows).compute(), metric_of(rows[50:], rows[:1], rows[1:50]).compute()
    assert whole == parts  # to the last bit
    torch.testing.assert_close({name: whole[name] for name in expected}, expected, rtol=0, atol=1e-6)


def test_merged_states_equal_one_rank(rows):
    rank0, rank1 = metric_of(rows[0::4], rows[2::4]), metric_of(rows[1::2])
    rank0.merge_state(rank1)
    assert rank0.compute() == metric_of(rows).compute()


def test_gathered_ranks_equal_one_rank_where_one_has_nothing_and_another_repeats(rows):
    others = [metric_of(), metric_of(rows[30:], rows[40:45])]  # rows 40 to 44 twice: a sampler's padding

    def gather(state: torch.Tensor, group=None) -> list[torch.Tensor]:
        gathered = [state]
        for other in others:
            gathered.append(torch.cat(other.packed) if other.packed else torch.tensor([], dtype=other.dtype))
        assert len({part.dtype for part in gathered}) == 1  # or a real gather fails
        return gathered

    rank0 = BenchmarkMetric("vsibench", "official")
    rank0.dist_sync_fn, rank0.distributed_available_fn = gather, lambda: True
    rank0.update(rows[:32])
    assert rank0.compute() == metric_of(rows).compute()
    assert len(rank0.rows()) == 32  # the rank's own state is back


def test_metric_in_half_precision_keeps_scores_exactly():
    metric = BenchmarkMetric("vsibench", "official").set_dtype(torch.bfloat16)
    metric.update([row("é", 0.1, "regression", original_question_type="object_counting")])
    assert metric.rows() == [
        {"problem_id": "é", "score": 0.1, "problem_type": "regression", "original_question_type": "object_counting"}
    ]


def test_metric_refuses_two_results_of_one_item():
    first = row(3, 1.0, original_question_type="route_planning")
    metric = metric_of([first], [first | {"score": 0.0}])
    with pytest.raises(ValueError, match="problem_id 3 of vsibench has two different results"):
        metric.compute()


def test_metric_refuses_bad_rows_when_they_come():
    with pytest.raises(ValueError, match="original_question_type is None"):
        BenchmarkMetric("vsibench", "official").update([row(1, 1.0)])
    with pytest.raises(ValueError, match="benchmark is 'vsi'"):
        BenchmarkMetric("vsi", "official")


def test_metric_reset_forgets_the_rows(rows):
    metric = metric_of(rows)
    metric.reset()
    metric.update(rows[:3])
    assert metric.compute()["scored"] == 3
