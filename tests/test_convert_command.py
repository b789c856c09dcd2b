"""`convert`: the benchmarks' own annotation files become data files that an evaluation reads."""

import json

import pyarrow
import pytest
from pyarrow import parquet

import cli
from datamodules.evaluation.benchmarks import BENCHMARKS
from tests.datamodules.evaluation.benchmark_examples import EXAMPLES
from tests.datamodules.evaluation.benchmark_samples import converted_example


def status(*arguments):
    try:
        return cli.main(["convert", *map(str, arguments)])
    except SystemExit as leaving:
        return leaving.code


@pytest.mark.parametrize("name", BENCHMARKS)
def test_annotation_files_become_the_data_file(name, tmp_path, capsys):
    benchmark, files = BENCHMARKS[name], []
    for number, (part, content) in enumerate(EXAMPLES[name].items()):
        path = tmp_path / f"own{number}.json"
        path.write_text(json.dumps(content))
        files.append(f"{part}={path}" if benchmark.parts else path)
    output = tmp_path / "made" / "eval.json"
    assert status(name, *files, "--output", output) == 0
    records = converted_example(benchmark)
    assert json.loads(output.read_text()) == records
    assert f"{len(records)} questions in {output}; {benchmark.title} has" in capsys.readouterr().out
    assert [path.name for path in output.parent.iterdir()] == ["eval.json"]


def test_lines_and_parquet_are_read_as_json_is(tmp_path):
    rows = EXAMPLES["videomme"][""]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "own.parquet")
    for suffix in ("json", "jsonl", "parquet"):
        assert status("videomme", tmp_path / f"own.{suffix}", "--output", tmp_path / f"{suffix}.out") == 0
    assert len({(tmp_path / f"{suffix}.out").read_text() for suffix in ("json", "jsonl", "parquet")}) == 1


def test_videos_may_lie_elsewhere_and_lectures_be_left_out(tmp_path):
    (track, rows), *_ = EXAMPLES["videommmu"].items()
    (tmp_path / "own.json").write_text(json.dumps(rows))
    output = tmp_path / "eval.json"
    given = ("videommmu", f"{track}={tmp_path}/own.json", "--output", output, "--folder", "clips", "--question_only")
    assert status(*given) == 0
    assert all(row["path"].startswith("./clips/question_only/") for row in json.loads(output.read_text()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mvbench", "own.json"], "'own.json': the files of mvbench do not say what they hold. Write PART=FILE"),
        (["mvbench", "Action=own.json"], "with one of these parts: Action Sequence, Action Prediction"),
        (["mmvu", "absent.json"], "absent.json does not exist (looked from "),
        (["mmvu", "own.csv"], "own.csv is none of .json, .jsonl, .parquet"),
        (["mmvu", "broken.json"], "broken.json is not valid JSON: "),
        (["mmvu", "broken.parquet"], "broken.parquet is no Parquet file: "),
        (["mmvu", "own.json"], "own.json: MMVU, row 0: "),
        (["videomme", "own.json", "own.json"], "own.json: question '001-1' was there before. Give each file once."),
        (["videomme", "own.json", "--question_only"], "--question_only belongs to videommmu; videomme has no such"),
    ],
)
def test_mistakes_are_one_message_and_leave_no_file(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = {"question_id": "001-1", "videoID": "a", "question": "Which?", "options": ["A. x", "B. y"], "answer": "A"}
    row |= {"duration": "short", "domain": "d", "sub_category": "s", "task_type": "t"}
    (tmp_path / "own.json").write_text(json.dumps([row]))
    for name in ("broken.json", "broken.parquet", "own.csv"):
        (tmp_path / name).write_text("{")
    before = set(tmp_path.iterdir())
    assert status(*arguments, "--output", "eval.json") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert set(tmp_path.iterdir()) == before
