"""Rows of predictions: nothing is lost on the disk, and what counts in which mean."""

import json

import pytest

from datamodules.evaluation.benchmarks import BENCHMARKS
from rewards.errors import UserError
from rewards.evaluation.metrics import Mean, aggregate
from rewards.evaluation.predictions import Prediction, grade, read_predictions, scored_items

FAILURE = "data.json:2 (problem_id 7): media file clip.mp4 does not exist."


def prediction(problem_id="7", benchmark="tempcompass", **values):
    common = {"index": 0, "problem_type": "multiple choice", "data_type": "video", "question": "q", "gold": "A"}
    return Prediction(benchmark=benchmark, problem_id=problem_id, path="./clip.mp4", **{**common, **values})


def test_a_line_holds_everything(tmp_path):
    row = prediction(
        options=["A. 日本", "B. \u2028"],
        start=0.1,
        categories={"task": "yes_no"},
        extra={"more": [1, {"deep": None}]},
        completion="<answer>A</answer>\n",
        answer="A",
        option_logprobs={"A": -0.1234567890123456789},
        scores={"videorft": 1.0},
        truncated=False,
    )
    file = tmp_path / "predictions.jsonl"
    file.write_text(row.to_line() * 2, encoding="utf-8")
    assert read_predictions(file) == [row, row]
    assert file.read_text(encoding="utf-8").count("\n") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"color": 1}, r"unknown fields \['color'\]"), ({"gold": None}, r"lacks \['gold'\]")],
)
def test_a_row_of_another_version_is_refused_with_its_line(tmp_path, change, message):
    row = json.loads(prediction().to_line())
    row.update(change)
    row = {name: value for name, value in row.items() if value is not None or name != "gold"}
    file = tmp_path / "predictions.jsonl"
    file.write_text(prediction().to_line() + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"predictions\.jsonl:2: .*{message}"):
        read_predictions(file)


@pytest.mark.parametrize("line", [b"3", b"null", b"\xff", b"[" * 100_000], ids=["number", "null", "bytes", "deep"])
@pytest.mark.parametrize("partial", [False, True])
def test_a_line_that_is_no_object_is_refused_with_its_line(tmp_path, line, partial):
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(prediction().to_line().encode() + line + b"\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl:2: "):
        read_predictions(file, partial=partial)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl is not a file"):
        read_predictions(tmp_path / "none.jsonl")


def test_each_rule_grades_in_its_own_way():
    # "A. red" is not the text "A" (script); its first mark is the letter A (TempCompass's matching rule).
    grades = grade(
        BENCHMARKS["tempcompass"],
        ["videorft", "official"],
        problem_type="multiple choice",
        categories={},
        answer="A. red",
        gold="A",
    )
    assert grades.scores == {"videorft": 0.0, "official": 1.0}
    assert grades.ungraded == {}


@pytest.mark.parametrize("answer", ["red squares", None])
def test_captions_have_no_official_rule_whether_answered_or_failed(answer):
    grades = grade(
        BENCHMARKS["tempcompass"],
        ["videorft", "official"],
        problem_type="free-form",
        categories={},
        answer=answer,
        gold="red",
    )
    assert grades.scores == {"videorft": None if answer is None else 0.0, "official": None}
    assert list(grades.ungraded) == ["official"]
    assert "no official rule" in grades.ungraded["official"]


def test_broken_gold_answers_are_no_missing_rule():
    with pytest.raises(ValueError, match="not a number"):
        grade(BENCHMARKS["vsibench"], ["videorft"], problem_type="regression", categories={}, answer="1", gold="two")


def test_failed_items_stay_in_the_denominator_report_and_ungraded_ones_in_none():
    rows = scored_items(
        [
            prediction("1", answer="A", scores={"official": 1.0}, categories={"task": "yes_no"}),
            prediction("2", failure=FAILURE, scores={"official": None}, categories={"task": "yes_no"}),
            prediction("3", answer="red", scores={"official": None}, ungraded={"official": "no rule"}),
        ],
        "official",
    )
    means = aggregate(BENCHMARKS["tempcompass"], "official", rows)
    assert means["overall"] == Mean(value=100.0, scored=1, failed=1)
    assert means["task/yes_no"] == Mean(value=100.0, scored=1, failed=1)


def test_a_rule_that_was_not_scored_is_an_error():
    with pytest.raises(ValueError, match="no score under 'official'; the run scored 'videorft'"):
        scored_items([prediction(scores={"videorft": 1.0})], "official")
