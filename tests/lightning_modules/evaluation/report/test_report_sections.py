"""Sections of a report against runs whose scores are counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.evaluation.report.comparison import comparison_section
from lightning_modules.evaluation.report.run_folder import EvaluationRun, load_run
from lightning_modules.evaluation.report.sections import (
    benchmark_section,
    failures_section,
    score_sections,
    settings_section,
)
from lightning_modules.evaluation.report.tables import Note, Score, Section, Table
from rewards.answer_format import wrap_answer
from rewards.evaluation.predictions import Prediction
from tests.lightning_modules.evaluation.report.made_up_runs import made_up_prediction, write_run_folder


def answered(benchmark: str, answers: list[str | None], **fields: list[Any]) -> list[Prediction]:
    """Choice questions whose right answer is A; None is a failed item."""
    predictions = []
    for index, answer in enumerate(answers):
        record = {"problem_id": index, "problem": "Which?", "problem_type": "multiple choice", "data_type": "video"}
        record |= {"options": ["A. red", "B. blue"], "solution": wrap_answer("A"), "path": "./a.mp4"}
        record |= {name: values[index] for name, values in fields.items()}
        completion = None if answer is None else f"<think>x</think><answer>{answer}</answer>"
        failure = "the file is cut off" if answer is None else None
        predictions.append(made_up_prediction(benchmark, index, record, completion, failure))
    return predictions


def run_of(folder: Path, predictions: list[Prediction], **settings: Any) -> EvaluationRun:
    return load_run(write_run_folder(folder, folder, predictions, **settings))


def table(section: Section, caption: str) -> Table:
    (found,) = [block for block in section.blocks if isinstance(block, Table) and block.caption.startswith(caption)]
    return found


def texts(row) -> list[str]:
    return [cell.number if isinstance(cell, Score) else cell for cell in row]


def prose(section: Section) -> str:
    return " ".join(
        block.text if isinstance(block, Note) else block for block in section.blocks if not isinstance(block, Table)
    )


def test_scores_say_what_is_behind_them(tmp_path):
    run = run_of(tmp_path / "run", answered("mmvu", ["A", "A", "A.", None]))
    section = score_sections(run)[0]
    # 2 of 3 answered items are right: 66.7; with the failed one as wrong 2 of 4. MMVU's official rule is as exact.
    assert [texts(row) for row in table(section, "Scores").rows] == [
        ["MMVU", "videorft, accuracy", "66.7", "3", "1", "0", "50.0"],
        ["MMVU", "official, exact letter", "66.7", "3", "1", "0", "50.0"],
    ]
    # Tokens: made-up completions of one word have 12 + 1.
    assert texts(table(section, "Items").rows[0]) == [
        "MMVU",
        "4",
        "625 (0.6% here)",
        "1",
        "0 (0.0%)",
        "3 (100.0%)",
        "13.0",
        "8.0",
    ]


def test_intervals_come_from_results_json_in_percent(tmp_path):
    run = run_of(tmp_path / "run", answered("mmvu", ["A", "A", "B", "B"]))
    accuracy = run.means("mmvu", "videorft")["mean_acc"]
    exact = run.means("mmvu", "official")["exact_letter_accuracy"]
    fraction, percent = (row[2] for row in table(score_sections(run)[0], "Scores").rows)
    assert fraction.interval == (100 * accuracy.low, 100 * accuracy.high)
    assert percent.interval == (exact.low, exact.high)
    assert fraction.interval == percent.interval == (0, 100)  # four items, two right: any share may be drawn


def test_without_failures_no_second_score(tmp_path):
    run = run_of(tmp_path / "run", answered("mmvu", ["A", "B"]))
    assert {texts(row)[-1] for row in table(score_sections(run)[0], "Scores").rows} == {"-"}
    assert "None of the 2 items failed" in prose(failures_section(run))


def test_a_benchmark_that_failed_as_a_whole_has_no_score(tmp_path):
    run = run_of(tmp_path / "run", answered("mmvu", [None, None]))
    assert texts(table(score_sections(run)[0], "Scores").rows[0]) == [
        "MMVU",
        "videorft, accuracy",
        "-",
        "0",
        "2",
        "0",
        "0.0",
    ]


def test_published_numbers_stand_beside_ours_with_their_source(tmp_path):
    run = run_of(tmp_path / "run", answered("videomme", ["A", "B", "B", "B"]))
    section = score_sections(run)[1]
    assert "7 billion parameters" in prose(section) and "arXiv 2505.12434" in prose(section)
    found = table(section, "This run")
    assert found.header[2:] == ("models/tiny", "VideoRFT-7B", "Video-R1-7B", "Qwen2.5-VL-7B", "VideoRFT-3B")
    assert texts(found.rows[0]) == [
        "Video-MME (4 of 2,700 items)",
        "videorft, accuracy",
        "25.0",
        "59.8",
        "59.3",
        "52.8",
        "45.4",
    ]


def test_groups_in_reading_order_with_their_denominators(tmp_path):
    durations = ["long", "short", "short", "medium"]
    run = run_of(tmp_path / "run", answered("videomme", ["A", "A", "B", None], duration=durations))
    rows = [texts(row) for row in table(benchmark_section(run, "videomme"), "By duration").rows]
    assert rows == [
        ["short", "50.0", "2", "0", "50.0", "2", "0"],
        ["medium", "-", "0", "1", "-", "0", "1"],
        ["long", "100.0", "1", "0", "100.0", "1", "0"],
    ]


def test_what_one_protocol_does_not_grade_is_said(tmp_path):
    predictions = answered("tempcompass", ["A", "B"], task=["multi-choice", "multi-choice"])
    caption = {"problem_id": 2, "problem": "Describe.", "problem_type": "free-form", "data_type": "video"}
    caption |= {"options": [], "solution": wrap_answer("a red square"), "path": "./a.mp4", "task": "captioning"}
    predictions.append(made_up_prediction("tempcompass", 2, caption, "<answer>a red square</answer>"))
    run = run_of(tmp_path / "run", predictions)
    assert texts(table(score_sections(run)[0], "Scores").rows[1]) == [
        "TempCompass",
        "official, overall",
        "50.0",
        "2",
        "0",
        "1",
        "-",
    ]
    rows = [texts(row) for row in table(benchmark_section(run, "tempcompass"), "By task").rows]
    assert rows[0] == ["captioning", "0.0", "1", "0", "-", "0", "0"]  # the script scores it 0, the authors' rule not


def test_failures_are_listed_with_their_reasons(tmp_path):
    run = run_of(tmp_path / "run", answered("mmvu", ["A", None]))
    assert [list(row) for row in table(failures_section(run), "Why").rows] == [["MMVU", "1", "the file is cut off"]]


def test_reasons_name_no_folder_of_the_machine(tmp_path):
    predictions = answered("mmvu", [None])
    reason = f"{tmp_path}/eval_mmvu.json:1 (problem_id 0): {tmp_path}/data/a.mp4 is cut off (data root {tmp_path}/data)"
    predictions = [replace(predictions[0], failure=reason)]
    folder = write_run_folder(tmp_path / "run", tmp_path / "data", predictions)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["paths"]["files"] = {"mmvu": f"{tmp_path}/eval_mmvu.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    section = failures_section(load_run(folder))
    (row,) = table(section, "Why").rows
    assert row[2] == "eval_mmvu.json:1 (problem_id 0): a.mp4 is cut off (data root as given)"


def test_a_relative_data_root_is_no_word_to_replace(tmp_path):
    predictions = [replace(answered("mmvu", [None])[0], failure=f"{Path.cwd()}/data/a.mp4: invalid data in data/a")]
    section = failures_section(load_run(write_run_folder(tmp_path / "run", Path("data"), predictions)))
    assert table(section, "Why").rows[0][2] == "a.mp4: invalid data in data/a"


def test_settings_show_where_a_text_ends(tmp_path):
    prompt = {"separator": "\n", "prefix": "", "instruction": " Look."}
    run = run_of(tmp_path / "run", answered("mmvu", ["A"]), prompt=prompt, limit=None)
    rows = dict(table(settings_section(run), "Model").rows)
    assert rows["settings.prompt.separator"] == '"\\n"' and rows["settings.prompt.prefix"] == '""'
    assert rows["settings.prompt.instruction"] == '" Look."' and rows["settings.limit"] == "null"


def test_settings_leave_out_who_ran_it_when_and_where(tmp_path):
    run = run_of(tmp_path / "run", answered("mmvu", ["A"]))
    section = settings_section(run)
    assert ("settings.frames.num_frames", "8") in [tuple(row) for row in table(section, "Model").rows]
    assert "2001" not in str(section) and str(tmp_path) not in str(section)


# Both runs on ten items: this one is right on 0 to 7, the other on 0 to 3 and 8.
THIS, OTHER = ["A"] * 8 + ["B"] * 2, ["A"] * 4 + ["B"] * 4 + ["A", "B"]


def test_comparison_by_hand(tmp_path):
    run = run_of(tmp_path / "this", answered("mmvu", THIS))
    other = run_of(tmp_path / "other", answered("mmvu", OTHER), seed=1)
    section = comparison_section(run, other)
    # Only this: 4 to 7, only the other: 8. McNemar: 2 * (C(5, 0) + C(5, 1)) / 2^5 = 0.375.
    assert texts(table(section, "Items").rows[0]) == [
        "MMVU",
        "videorft",
        "+30.0",
        "80.0",
        "50.0",
        "10",
        "0",
        "4",
        "1",
        "0.38",
    ]
    assert texts(table(section, "Differences").rows[0]) == ["MMVU", "videorft, accuracy", "+30.0"]
    assert [list(row) for row in table(section, "What").rows] == [["settings.seed", "0", "1"]]


def test_plots_of_differences_share_an_axis_with_zero_in_the_middle():
    rows = [("a", Score(value=3, interval=(-2, 12), signed=True)), ("b", Score(value=40))]
    differences = Table(caption="", header=("", ""), rows=rows)
    assert differences.axis == (-20, 20)  # the next round number beyond 12; what is not drawn does not count
    assert Table(caption="", header=("", ""), rows=[("a", Score(value=3, interval=(2, 12)))]).axis == (0, 100)


def test_comparison_leaves_out_what_failed_in_either_and_says_so(tmp_path):
    run = run_of(tmp_path / "this", answered("mmvu", ["A", "A", None, "B"]))
    other = run_of(tmp_path / "other", answered("mmvu", ["A", None, "A", "A"]))
    assert texts(table(comparison_section(run, other), "Items").rows[0])[2:7] == ["-50.0", "50.0", "100.0", "2", "2"]
    nothing = run_of(tmp_path / "nothing", answered("mmvu", [None] * 4))
    assert texts(table(comparison_section(run, nothing), "Items").rows[0])[2:7] == ["-", "-", "-", "0", "4"]


def test_comparison_refuses_other_items(tmp_path):
    run = run_of(tmp_path / "this", answered("mmvu", THIS))
    shorter = run_of(tmp_path / "shorter", answered("mmvu", OTHER[:9]))
    with pytest.raises(ValueError, match=r"mmvu: 10 in .*this, 9 in .*shorter, of which 1 .*problem_id 9\."):
        comparison_section(run, shorter)
    changed = answered("mmvu", OTHER)
    changed[3] = replace(changed[3], question="Which one?")
    with pytest.raises(ValueError, match=r"of which 1 .*differ in question.*problem_id 3\."):
        comparison_section(run, run_of(tmp_path / "changed", changed))
    elsewhere = run_of(tmp_path / "elsewhere", answered("videomme", OTHER))
    with pytest.raises(ValueError, match=r"cannot be compared: they hold mmvu under .* and videomme"):
        comparison_section(run, elsewhere)


def test_comparison_names_what_one_run_has_only(tmp_path):
    run = run_of(tmp_path / "this", answered("mmvu", THIS) + answered("videomme", THIS))
    other = run_of(tmp_path / "other", answered("mmvu", OTHER))
    assert "only one of the runs has them: Video-MME." in prose(comparison_section(run, other))
    one_rule = replace(run, results=replace(run.results, scoring_rules=["official"]))
    section = comparison_section(one_rule, run)
    assert "only one of the runs has them: scoring rule videorft." in prose(section)
    assert [row[1] for row in table(section, "Items").rows] == ["official", "official"]
    assert "only one" not in prose(comparison_section(run, run))


def test_knowledge_gain_from_question_only_clips(tmp_path):
    tracks = ["Adaptation"] * 4 + ["Perception"]
    after = answered("videommmu", ["A", "A", "A", "B", "B"], track=tracks)
    paths = [f"./VideoMMMU/question_only/{index}_image.mp4" for index in range(4)] + ["./a.mp4"]
    before = answered("videommmu", ["A", "A", "B", "B", "A"], track=tracks, path=paths)
    run, other = run_of(tmp_path / "after", after), run_of(tmp_path / "before", before)
    # 50 % before and 75 % after: half of what was left to learn.
    assert "knowledge gain, videorft: +50.0 %" in prose(comparison_section(run, other))
    assert "knowledge gain" not in prose(comparison_section(other, run))  # the lecture came first
    assert "knowledge gain" not in prose(comparison_section(run, run))


def test_files_must_belong_together(tmp_path):
    folder = write_run_folder(tmp_path / "run", tmp_path, answered("mmvu", ["A", "B"]))
    results, lines = json.loads((folder / "results.json").read_text()), (folder / "predictions.jsonl").read_text()

    (folder / "predictions.jsonl").write_text(lines.replace('"answer": "B"', '"answer": "A"'))
    with pytest.raises(ValueError, match=r"predictions\.jsonl is not the file that results\.json holds the scores of"):
        load_run(folder)
    (folder / "predictions.jsonl").write_text(lines)

    (folder / "results.json").write_text(json.dumps(results | {"manifest_sha256": "0"}))
    with pytest.raises(ValueError, match="belongs to another manifest"):
        load_run(folder)

    results["benchmarks"]["mmvu"]["items"] = "two"
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results\.json: benchmarks\.mmvu\.items is 'two'; it must be int\."):
        load_run(folder)

    (folder / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        load_run(folder)

    (folder / "results.json").unlink()
    with pytest.raises(ValueError, match=r"results\.json is missing"):
        load_run(folder)


def test_folders_that_are_no_finished_run(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        load_run(tmp_path / "nothing")
    (tmp_path / "predictions.rank0.partial.jsonl").touch()
    with pytest.raises(ValueError, match="is not finished"):
        load_run(tmp_path)
