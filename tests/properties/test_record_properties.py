"""Data files: every element is a record or a named problem, and a record is read back as it was checked."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.checks.completions_file import score_completions_file
from datamodules.media import record_times
from datamodules.prompts import PromptTemplate
from datamodules.record_schema import RecordProblem, check_record, parse_record
from datamodules.records import RecordFile, scan
from datamodules.types import VideoRecord
from datamodules.video.media_place import media_place
from rewards.errors import UserError
from rewards.suite import TOTAL
from tests.properties.strategies import ANSWERS, JSON_VALUES, odd_records, sound_records

FILE = Path("data.json")


def checked(data: object, *, require_process: bool = False) -> VideoRecord | RecordProblem:
    return check_record(data, file=FILE, line=1, require_process=require_process)


@given(odd_records(), st.booleans())
def test_any_json_is_a_record_or_a_named_problem(data, require_process):
    item = checked(data, require_process=require_process)
    text = str(item) if isinstance(item, RecordProblem) else item.where
    text.encode()  # it can be printed
    if isinstance(item, VideoRecord):
        # Rollouts and predictions carry it on: what was accepted can be written and is read back the same.
        plain = asdict(item) | {"file": str(item.file)}
        assert json.loads(json.dumps(plain, allow_nan=False, ensure_ascii=False).encode()) == json.loads(
            json.dumps(plain)
        )


@given(sound_records())
def test_sound_records_are_accepted_unchanged(data):
    record = checked(data, require_process=True)
    assert isinstance(record, VideoRecord), record
    assert record.problem_id == str(data["problem_id"])
    assert (record.problem, list(record.options), record.path) == (data["problem"], data["options"], data.get("path"))
    assert record.extra == {name: data[name] for name in ("duration", "task", "note") if name in data}


@given(st.binary(max_size=60) | odd_records().map(lambda data: json.dumps(data).encode()))
@example(b"[" * 100_000)
@example(b"[" * 900 + b"]" * 900)
@example(b'{"problem_id": ' + b"[" * 900 + b"]" * 900 + b"}")
@example(b'{"problem_id": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}")
@example(b'{"problem_id": ' + b"1" * 5000 + b"}")
def test_any_line_is_a_record_or_a_named_problem(raw):
    str(parse_record(raw, file=FILE, line=1, require_process=False)).encode()


@given(st.binary(max_size=60), st.lists(odd_records(), max_size=3), st.booleans())
@example(b"[" * 100_000, [], True)
@example(b"[1" + b"[" * 100_000, [], True)
def test_any_file_is_scanned_to_its_end(tmp_path, noise, records, as_list):
    path = tmp_path / "data.json"
    texts = [json.dumps(record) for record in records]
    path.write_bytes((f"[{','.join(texts)}]" if as_list else "\n".join(texts)).encode() + noise)
    for item in scan(path):
        assert isinstance(item, VideoRecord | RecordProblem)


@given(
    st.lists(sound_records(), min_size=1, max_size=4, unique_by=lambda record: str(record["problem_id"])),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", " ", "\r\n", "\n\n "]),
    st.sampled_from(["", "\ufeff"]),
)
def test_records_are_read_from_their_places(tmp_path, records, as_list, ascii_only, space, mark):
    path = tmp_path / "data.json"
    texts = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    text = f"[{space}{f'{space},'.join(texts)}{space}]" if as_list else "".join(f"{each}\n{space}" for each in texts)
    path.write_text(mark + text, encoding="utf-8", newline="")
    file = RecordFile(path, tmp_path)
    assert [json.loads(file.raw(index).decode("utf-8-sig")) for index in range(len(file))] == records
    assert list(file) == list(scan(path))


@given(odd_records())
def test_places_and_times_of_media_are_right_or_refused(tmp_path, data):
    record = checked(data)
    if isinstance(record, RecordProblem) or record.data_type == "text":
        return
    for read in (record_times, lambda record: media_place(record.path, tmp_path)):
        try:
            read(record)
        except UserError as error:
            str(error).encode()


@given(sound_records())
def test_prompts_hold_the_question_and_every_option(data):
    record, template = checked(data), PromptTemplate()
    text = template.user_text(record)
    assert text.startswith(record.problem)
    words = " ".join(text.split())
    assert all(" ".join(option.split()) in words for option in record.options)
    assert template.target(record).endswith(record.solution)
    (message,) = template.messages(record)
    assert len(message["content"]) == (1 if record.data_type == "text" else 2)


@given(
    st.lists(
        st.binary(max_size=30)
        | JSON_VALUES.map(lambda value: json.dumps(value).encode())
        | st.fixed_dictionaries(
            {
                "problem_type": st.sampled_from(["multiple choice", "OCR", "numerical", "other"]),
                "completion": ANSWERS,
                "solution": ANSWERS | st.just("<answer>7</answer>"),
            },
            optional={"note": JSON_VALUES},
        ).map(lambda row: json.dumps(row).encode()),
        max_size=3,
    )
)
@example([b"[" * 100_000])
def test_files_of_completions_are_scored_or_refused(tmp_path, lines):
    path, output = tmp_path / "completions.jsonl", tmp_path / "scored.jsonl"
    path.write_bytes(b"\n".join(lines))
    output.unlink(missing_ok=True)
    try:
        summary = score_completions_file(path, output)
    except UserError:
        assert not output.exists()
        return
    assert summary.counts.total() == len(output.read_text().splitlines())
    assert all(0 <= means[TOTAL] <= 2 for means in summary.means.values())


@pytest.mark.parametrize("brackets", [b"[", b'[{"a":'])
def test_a_deep_list_is_a_problem_of_the_file(tmp_path, brackets):
    (tmp_path / "data.json").write_bytes(brackets * 100_000)
    (problem,) = scan(tmp_path / "data.json")
    assert isinstance(problem, RecordProblem)
