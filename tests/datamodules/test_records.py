from __future__ import annotations

import json
import pickle
import time

import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.media import read_media
from datamodules.record_schema import RecordProblem
from datamodules.records import RecordFile, RecordSet, open_records, scan
from datamodules.text_table import SHOWN
from datamodules.video.frame_sampling import TRAIN
from datamodules.video.media_place import media_place


def record(number: int, **changes: object) -> dict:
    return {
        "problem_id": number,
        "problem": f'What is in clip {number}? {{"[braces", ünïcode}}',
        "data_type": "video",
        "problem_type": "free-form",
        "solution": "<answer>a cup</answer>",
        "path": f"{number}.mp4",
        **changes,
    }


def write(path, records, layout="jsonl"):
    if layout == "jsonl":
        path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in records), encoding="utf-8")
    else:
        indent = {"list": None, "indented list": 2}[layout]
        path.write_text(json.dumps(records, indent=indent, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(params=["jsonl", "list", "indented list"])
def layout(request):
    return request.param


def test_records_are_read_in_any_order_from_any_layout(tmp_path, layout):
    source = [record(number, options=["A. [x]", 'B. "{y}"'], nested={"a": [[1], {}]}) for number in (5, 3, 9)]
    file = RecordFile(write(tmp_path / "data", source, layout), tmp_path)
    assert len(file) == 3
    assert [file[index].problem_id for index in (2, 0, 1, -1)] == ["9", "5", "3", "9"]
    assert [(item.line, item.problem) for item in file] == [(i, source[i - 1]["problem"]) for i in (1, 2, 3)]
    assert file[1].extra == {"nested": {"a": [[1], {}]}}
    assert file[1].options == ("A. [x]", 'B. "{y}"')


@pytest.mark.parametrize("index", [3, -4])
def test_an_index_out_of_range_is_an_index_error(tmp_path, index):
    file = RecordFile(write(tmp_path / "data", [record(number) for number in range(3)]), tmp_path)
    with pytest.raises(IndexError, match=f"record {index} of 3"):
        file[index]


def test_blank_lines_and_a_byte_order_mark_are_no_records_but_count_as_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record(1)).encode() + b"\r\n\r\n" + json.dumps(record(2)).encode())
    assert [(item.problem_id, item.line) for item in RecordFile(path, tmp_path)] == [("1", 1), ("2", 3)]
    path.write_bytes(b"\xef\xbb\xbf\n " + json.dumps([record(1), record(2)]).encode() + b"\n")
    assert [(item.problem_id, item.line) for item in RecordFile(path, tmp_path)] == [("1", 1), ("2", 2)]


def test_all_problems_of_a_file_stand_in_one_error(tmp_path, layout):
    source = [record(0), record(1, problem_type="quiz"), record(0), record(2), record(3, solution="no tags")]
    path = write(tmp_path / "data", source, layout)
    with pytest.raises(ValueError, match="is not a valid data file: 3 problem") as caught:
        RecordFile(path, tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip().split(": ")[0] for line in lines] == [
        f"{path}:2 (problem_id 1)",
        f"{path}:3 (problem_id 0)",
        f"{path}:5 (problem_id 3)",
    ]
    assert "problem_id stands at 1 already" in lines[1]


def test_an_integer_id_equals_its_string(tmp_path):
    with pytest.raises(ValueError, match="problem_id stands at 1 already"):
        RecordFile(write(tmp_path / "data", [record(7), record("7")]), tmp_path)


def test_many_problems_are_counted_and_the_first_listed(tmp_path):
    path = write(tmp_path / "data", [record(number, problem="") for number in range(SHOWN + 5)])
    with pytest.raises(ValueError, match="25 problem") as caught:
        RecordFile(path, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + SHOWN + 1
    assert lines[-1].strip() == "and 5 more"


def test_require_process_refuses_a_file_without_chains_of_thought(tmp_path):
    path = write(tmp_path / "data", [record(1, process="<think>a</think>"), record(2)])
    assert len(RecordFile(path, tmp_path)) == 2
    with pytest.raises(ValueError, match=r"data:2 \(problem_id 2\): process is missing"):
        RecordFile(path, tmp_path, require_process=True)


def places(path):
    return [(item.line, item.message if isinstance(item, RecordProblem) else item.problem_id) for item in scan(path)]


def test_a_broken_line_does_not_hide_the_others(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(record(1))}\n{{broken\n{json.dumps(record(3))}\n")
    (first, broken, last) = places(path)
    assert (first, last) == ((1, "1"), (3, "3"))
    assert broken[0] == 2
    assert broken[1].startswith("not valid JSON in UTF-8: Expecting property name")


def test_an_element_of_a_list_that_is_no_record_does_not_hide_the_others(tmp_path):
    path = write(tmp_path / "data", [record(1), 5, [record(2)], record(3)], "indented list")
    assert places(path) == [
        (1, "1"),
        (2, "a record is an object {...}; given int: '5'."),
        (3, f"a record is an object {{...}}; given list: {str([record(2)])[:60]!r}."),
        (4, "3"),
    ]


@pytest.mark.parametrize(
    ("text", "element", "line", "message"),
    [
        ("[\n%(one)s\n%(two)s]", 2, 3, "Expecting ',' delimiter"),
        ("[\n%(one)s,\n{'single': quotes},\n%(two)s]", 2, 3, "Expecting property name"),
        ("[%(one)s,\n%(two)s,\n]", 3, 3, "Expecting value"),
        ("[, %(one)s, %(two)s]", 1, 1, "Expecting value"),
        ("[%(one)s, %(two)s]\n%(one)s", 3, 1, "Extra data"),
        ("[%(one)s,\n%(two)s", 3, 2, "Expecting ',' delimiter"),
        ('[%(one)s, %(two)s,\n{"problem_id": "3, "a": 1}]', 3, 2, "Expecting ',' delimiter"),
    ],
)
def test_a_syntax_error_in_a_list_is_a_problem_with_its_element_and_line(tmp_path, text, element, line, message):
    path = tmp_path / "data.json"
    path.write_text(text % {"one": json.dumps(record(1)), "two": json.dumps(record(2))})
    *before, problem = scan(path)
    assert [item.line for item in before] == list(range(1, element))
    assert problem.line == element
    assert problem.message.startswith(f"not valid JSON in UTF-8: {message}")
    assert f": line {line} column" in problem.message
    with pytest.raises(ValueError, match="is not a valid data file: 1 problem"):
        RecordFile(path, tmp_path)


def test_a_list_that_is_not_utf_8_is_a_problem(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(json.dumps([record(1)], ensure_ascii=False).encode("latin-1"))
    (problem,) = scan(path)
    assert "'utf-8' codec can't decode byte 0xfc" in problem.message


@pytest.mark.parametrize("text", ["", "\n \n", "[]", " [ ] "])
def test_a_file_without_records_is_refused(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no records"):
        RecordFile(path, tmp_path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"Data file .*absent\.jsonl is not a file"):
        RecordFile(tmp_path / "absent.jsonl", tmp_path)
    path = write(tmp_path / "data", [record(1)])
    with pytest.raises(ValueError, match=r"data_root .*absent is not a folder"):
        RecordFile(path, tmp_path / "absent")


def test_a_file_changed_after_opening_is_refused(tmp_path):
    path = write(tmp_path / "data", [record(1), record(2)])
    file = RecordFile(path, tmp_path)
    write(path, [record(1), record(2), record(3)])
    with pytest.raises(ValueError, match="was changed while in use"):
        file[0]


def test_a_set_joins_files_and_allows_the_same_id_in_two_of_them(tmp_path):
    first = write(tmp_path / "first", [record(1), record(2)])
    second = write(tmp_path / "second", [record(2), record(3), record(4)], "list")
    records = open_records([first, second], tmp_path)
    assert len(records) == 5
    assert [item.problem_id for item in records] == ["1", "2", "2", "3", "4"]
    assert [item.where for item in (records[1], records[2], records[-1])] == [
        f"{first}:2 (problem_id 2)",
        f"{second}:1 (problem_id 2)",
        f"{second}:3 (problem_id 4)",
    ]
    assert records.data_root == tmp_path
    with pytest.raises(IndexError):
        records[5]


def test_a_set_refuses_nothing_repeated_files_and_mixed_roots(tmp_path):
    path = write(tmp_path / "data", [record(1)])
    other = write(tmp_path / "other", [record(1)])
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="at least one data file"):
        RecordSet([])
    with pytest.raises(ValueError, match=f"Given more than once: {path}"):
        open_records([path, tmp_path / "sub" / ".." / "data"], tmp_path)
    with pytest.raises(ValueError, match=r"share one data root; given: .*, .*sub"):
        RecordSet([RecordFile(path, tmp_path), RecordFile(other, tmp_path / "sub")])


def test_media_stay_below_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (root / "sub" / "1.mp4").write_bytes(b"x")
    (outside / "2.mp4").write_bytes(b"x")
    (root / "inner").symlink_to(root / "sub")
    (root / "escape").symlink_to(outside)
    source = [record(1, path="./inner/1.mp4"), record(2, path="escape/2.mp4"), record(3, path="sub/3.mp4")]
    file = RecordFile(write(tmp_path / "data", source), root)
    assert media_place(file[0].path, root) == (root / "sub" / "1.mp4").resolve()
    with pytest.raises(ValueError, match=r"data:2 \(problem_id 2\): .* leads through a symbolic link to .*outside"):
        read_media(file[1], root, TRAIN)
    with pytest.raises(ValueError, match=r"data:3 \(problem_id 3\): media file .*sub/3\.mp4 does not exist"):
        read_media(file[2], root, TRAIN)


class Ids(torch.utils.data.Dataset):
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return int(self.records[index].problem_id)


def test_worker_processes_read_what_the_parent_reads(tmp_path):
    records = open_records([write(tmp_path / "data", [record(number) for number in range(40)])], tmp_path)
    assert records[39].problem_id == "39"  # read before the fork
    loader = DataLoader(Ids(records), batch_size=5, num_workers=2, multiprocessing_context="fork")
    assert torch.cat(list(loader)).tolist() == list(range(40))


def test_a_pickled_file_holds_places_not_records(tmp_path):
    file = RecordFile(write(tmp_path / "data", [record(number) for number in range(1000)]), tmp_path)
    pickled = pickle.dumps(file)
    # Three 8-byte integers per record and the rest of the object.
    assert len(pickled) < 1000 * 3 * 8 + 1000
    assert pickle.loads(pickled)[999] == file[999]


@pytest.mark.parametrize(
    ("count", "seconds"), [(20_000, 5.0), pytest.param(310_000, 60.0, marks=pytest.mark.slow)], ids=["20k", "310k"]
)
def test_opening_a_large_file_takes_seconds(tmp_path, layout, count, seconds):
    path = write(tmp_path / "data", [record(number) for number in range(count)], layout)
    started = time.process_time()
    file = RecordFile(path, tmp_path)
    assert time.process_time() - started < seconds
    assert len(file) == count
    assert file[count - 1].problem_id == str(count - 1)
