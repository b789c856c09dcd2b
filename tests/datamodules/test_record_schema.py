from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from datamodules.record_schema import RecordProblem, doubt, parse_record
from datamodules.records import RecordFile, scan
from datamodules.types import VideoRecord
from rewards.types import ProblemType

VALID = {
    "problem_id": 7,
    "problem": "Which color appears first?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. red", "B. green"],
    "solution": "<answer>A</answer>",
    "path": "./clips/7.mp4",
}


def parsed(require_process: bool = False, **changes: object) -> VideoRecord | RecordProblem:
    data = {name: value for name, value in {**VALID, **changes}.items() if value is not ...}
    raw = json.dumps(data).encode()
    return parse_record(raw, file=Path("data.jsonl"), line=3, require_process=require_process)


def test_fields_are_kept_and_unknown_ones_go_to_extra():
    record = parsed(data_source="NeXT-QA", process="<think>red</think>", original_question_type="order", start=1.5)
    assert record == VideoRecord(
        problem_id="7",
        problem="Which color appears first?",
        data_type="video",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        solution="<answer>A</answer>",
        process="<think>red</think>",
        options=("A. red", "B. green"),
        path="./clips/7.mp4",
        data_source="NeXT-QA",
        extra={"original_question_type": "order", "start": 1.5},
        file=Path("data.jsonl"),
        line=3,
    )


@pytest.mark.parametrize("options", [None, [], ...])
def test_options_may_be_null_empty_or_absent(options):
    assert parsed(options=options).options == ()


@pytest.mark.parametrize("problem_type", ["multiple choice", "numerical", "OCR", "free-form", "regression"])
def test_every_problem_type_is_accepted(problem_type):
    assert parsed(problem_type=problem_type).problem_type.value == problem_type


@pytest.mark.parametrize("changes", [{"data_type": "text"}, {"data_type": ...}])
def test_a_text_record_has_no_path(changes):
    record = parsed(path=..., **changes)
    assert (record.data_type, record.path) == ("text", None)


@pytest.mark.parametrize("path", ["clip.mp4", "./a/../b/clip.mp4", "a/..b/clip.mp4", "..clip.mp4"])
def test_paths_inside_the_root_are_accepted_as_they_are(path):
    assert parsed(path=path).path == path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_id": ...}, "problem_id is missing; it must be an integer or a non-empty string"),
        ({"problem_id": True}, "problem_id is True"),
        ({"problem_id": ""}, "problem_id is ''"),
        ({"problem_id": 1.5}, "problem_id is 1.5"),
        ({"problem": " "}, "problem is ' '; it must be a non-empty string"),
        ({"problem": ...}, "problem is missing"),
        ({"data_type": "audio"}, "data_type is 'audio'; allowed: 'video', 'image', 'text'"),
        ({"data_type": ...}, "data_type is missing; allowed"),
        (
            {"problem_type": "multi choice"},
            "problem_type is 'multi choice'; allowed: 'multiple choice', 'numerical', 'OCR', 'free-form', 'regression'",
        ),
        ({"problem_type": ...}, "problem_type is missing"),
        ({"problem_type": ["OCR"]}, "problem_type is ['OCR']"),
        ({"solution": "A"}, "solution is 'A'; it must hold the answer as '<answer>...</answer>'"),
        ({"solution": "<answer> </answer>"}, "solution is '<answer> </answer>'"),
        ({"solution": ...}, "solution is missing"),
        ({"options": "A. red"}, "options is 'A. red'; it must be a list"),
        ({"options": ["A. red", ""]}, "options is ['A. red', '']"),
        ({"options": {"A": "red"}}, "options is {'A': 'red'}"),
        ({"process": 1}, "process is 1; it must be a string, null or absent"),
        ({"data_source": 1}, "data_source is 1"),
        ({"path": ...}, "path is None with data_type 'video'"),
        ({"path": ""}, "path is None with data_type 'video'"),
        ({"data_type": "text"}, "path is './clips/7.mp4' with data_type 'text'"),
        ({"path": "/data/7.mp4"}, "path is '/data/7.mp4'; it must be relative to the data root"),
        ({"path": "../7.mp4"}, "path is '../7.mp4'; it must be relative to the data root and stay inside it"),
        ({"path": "a/../../7.mp4"}, "path is 'a/../../7.mp4'"),
        ({"path": ".."}, "path is '..'"),
        ({"path": "C:\\clips\\7.mp4"}, "it must be relative to the data root"),
        ({"path": "a\0b"}, "it must be relative to the data root"),
    ],
)
def test_an_invalid_field_is_named_with_what_was_given_and_what_is_allowed(changes, message):
    problem = parsed(**changes)
    assert isinstance(problem, RecordProblem)
    assert message in problem.message
    assert problem.where == f"data.jsonl:3 (problem_id {'unknown' if 'problem_id' in changes else 7})"
    assert str(problem) == f"{problem.where}: {problem.message}"


@pytest.mark.parametrize("process", [..., None, "", "no tags", "<think>never closed", "<think></think>"])
def test_process_is_required_where_asked_for(process):
    problem = parsed(require_process=True, process=process)
    assert isinstance(problem, RecordProblem)
    assert "supervised fine-tuning needs '<think>...</think>'" in problem.message
    assert isinstance(parsed(process=process), VideoRecord)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"problem_id": 7,,}', "not valid JSON in UTF-8"),
        (b'{"problem": "\xff"}', "not valid JSON in UTF-8: 'utf-8' codec can't decode"),
        (b"[1, 2]", "a record is an object {...}; given list: '[1, 2]'"),
    ],
)
def test_what_is_no_json_object_is_a_problem(raw, message):
    problem = parse_record(raw, file=Path("data.jsonl"), line=3, require_process=False)
    assert isinstance(problem, RecordProblem)
    assert message in problem.message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('"note": NaN', "note is nan, which JSON cannot hold"),
        ('"note": {"score": [1, -Infinity]}', r"note\.score\[1\] is -inf, which JSON cannot hold"),
        ('"start": 1e999', "start is inf, which JSON cannot hold"),
        (r'"problem": "half \ud83d"', r"problem holds '\\ud83d', half of a character"),
        (r'"note": ["\udc80"]', r"note\[0\] holds '\\udc80', half of a character"),
        (r'"\udc80": 1', "holds '.udc80', half of a character"),
        (f'"note": {"[" * 40}{"]" * 40}', r"nested more than 32 levels deep"),
        (f'"note": {"[" * 100_000}{"]" * 100_000}', "recursion|nested"),
        (f'"note": {"9" * 5000}', "not valid JSON"),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_what_json_cannot_carry_back_is_refused(raw: str, message: str, as_list: bool, tmp_path: Path):
    fields = json.dumps({**VALID, "path": "7.mp4"})[:-1]
    record = f"{fields}, {raw}}}"
    file = tmp_path / "data.jsonl"
    file.write_text(f"[{record}]" if as_list else record)
    (problem,) = scan(file)
    assert isinstance(problem, RecordProblem)
    assert re.search(message, problem.message)
    with pytest.raises(ValueError, match="is not a valid data file: 1 problem"):
        RecordFile(file, tmp_path)


def test_whole_characters_and_deep_enough_fields_are_fine():
    assert parsed(problem="é 😀", note={"a": [[1.5, None, True]]}).extra == {"note": {"a": [[1.5, None, True]]}}


def test_no_name_of_a_record_reaches_the_terminal_as_a_command():
    record = parsed(problem_id="\x1b[2J\u202e\nFAKE 7")
    assert record.where == r"data.jsonl:3 (problem_id \x1b[2J\u202e\nFAKE 7)"
    assert parsed(problem_id="\x1b]0;x\x07", solution="").where == r"data.jsonl:3 (problem_id \x1b]0;x\x07)"


@pytest.mark.parametrize(
    ("changes", "field", "meant"),
    [
        ({"options": ..., "choices": ["A. red"]}, "choices", "options"),
        ({"options": [], "Options": ["A. red"]}, "Options", "options"),
        ({"options": ..., "optons": ["A. red"]}, "optons", "options"),
        ({"path": ..., "data_type": ..., "video": "clips/7.mp4"}, "video", "path"),
    ],
)
def test_a_field_under_another_name_without_which_it_is_another_question_is_refused(changes, field, meant):
    problem = parsed(**changes)
    assert isinstance(problem, RecordProblem)
    assert problem.message.startswith(f"there is a field {field!r} and no {meant!r}")
    assert problem.message.endswith(f"Rename it to {meant!r}.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"choices": ["A. red"]}, None),  # there are options too
        ({"extra": 1, "original_question_type": "order", "start": 1.5, "end": 2.0}, None),
        ({"options": ...}, "multiple choice without options: the prompt shows none"),
        ({"options": ..., "problem_type": "numerical"}, None),
        ({"proces": "<think>red</think>"}, "field 'proces' is not read, and there is no 'process'"),
        ({"start_time": 1.5}, "field 'start_time' is not read, and there is no 'start'"),
        ({"start_time": 1.5, "start": 0}, None),
        ({"datasource": "NeXT-QA"}, "field 'datasource' is not read, and there is no 'data_source'"),
        ({"choices": ["3"], "options": ..., "problem_type": "numerical"}, "field 'choices' is not read"),
    ],
)
def test_what_may_be_a_mistake_in_a_valid_record_is_named(changes, said):
    found = doubt(parsed(**changes))
    assert (found is None) if said is None else found.startswith(said)


def test_a_file_counts_its_doubtful_records_with_the_first_line(tmp_path):
    rows = [{**VALID, "problem_id": number} for number in range(5)]
    for number in (1, 3):
        del rows[number]["options"]
    rows[4]["proces"] = "<think>red</think>"
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = RecordFile(tmp_path / "data.jsonl", tmp_path)
    assert list(file.doubts.values()) == [(2, 2), (1, 5)]
    assert file.take_media() == {"./clips/7.mp4": 1}
    assert file.take_media() == {}
