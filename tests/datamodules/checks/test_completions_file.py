import json

import pytest

from datamodules.checks.completions_file import score_completions_file
from rewards.types import ProblemType

GOOD = "<think>x</think><answer>{}</answer>"
GOOD_A = GOOD.format("A")


def row(problem_type="multiple choice", completion=GOOD_A, solution="<answer>A</answer>", **more):
    return {"problem_type": problem_type, "completion": completion, "solution": solution, **more}


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_keeps_its_fields_and_gains_its_breakdown(tmp_path):
    rows = [
        row(problem_id=3, note="红 \ud83d"),  # A lone surrogate is legal JSON.
        row(completion="<answer>B</answer>"),
        row("regression", GOOD.format("9"), "<answer>10</answer>"),
    ]
    output = tmp_path / "new" / "scored.jsonl"
    summary = score_completions_file(write_rows(tmp_path / "in.jsonl", *rows), output)
    scored = read_rows(output)
    breakdowns = [item.pop("rewards") for item in scored]
    assert scored == rows
    assert breakdowns == [
        {"accuracy": 1.0, "format": 1.0, "total": 2.0},
        {"accuracy": 0.0, "format": 0.0, "total": 0.0},
        {"accuracy": pytest.approx(0.9), "format": 1.0, "total": pytest.approx(1.9)},
    ]
    assert summary.counts.total() == 3
    assert summary.counts == {ProblemType.MULTIPLE_CHOICE: 2, ProblemType.REGRESSION: 1}
    assert summary.means[ProblemType.MULTIPLE_CHOICE] == {"accuracy": 0.5, "format": 0.5, "total": 1.0}
    assert summary.means[ProblemType.REGRESSION]["accuracy"] == pytest.approx(0.9)


def test_file_may_be_scored_in_place_again(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", row(rewards={"accuracy": 0.0, "old": 1.0}))
    score_completions_file(path, path)
    assert read_rows(path) == [row(rewards={"accuracy": 1.0, "format": 1.0, "total": 2.0})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "the line is not JSON"),
        (b"", "the line is not JSON"),
        (b'{"problem_type": "\xff"}', "the line is not JSON"),
        (b"[1]", "a JSON list"),
        pytest.param(b"[" * 100_000, "the line is not JSON", id="deep"),
        (b"{}", "'problem_type' is missing; the row has no fields"),
        (b'{"problem_type": "OCR", "solution": ""}', "'completion' is missing; the row has problem_type, solution"),
        (json.dumps(row(completion=None)).encode(), "'completion' is None"),
        (json.dumps(row("essay")).encode(), "problem_type is 'essay'; it must be one of 'multiple choice'"),
        (json.dumps(row("numerical")).encode(), "'A' is not a number"),
        (json.dumps(row(solution="A")).encode(), "'A' has no answer"),
    ],
)
def test_bad_row_is_named_by_file_and_line_and_leaves_the_old_output(tmp_path, line, message):
    path = write_rows(tmp_path / "in.jsonl", row())
    path.write_bytes(path.read_bytes() + line + b"\n")
    output = tmp_path / "out.jsonl"
    output.write_text("earlier")
    with pytest.raises(ValueError, match=f"in.jsonl:2: .*{message}"):
        score_completions_file(path, output)
    assert output.read_text() == "earlier"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no rows"):
        score_completions_file(write_rows(tmp_path / "in.jsonl"), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_missing_input_leaves_no_output(tmp_path):
    with pytest.raises(FileNotFoundError):
        score_completions_file(tmp_path / "absent.jsonl", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
