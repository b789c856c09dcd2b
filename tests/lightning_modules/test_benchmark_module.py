"""Benchmark runs end to end on tiny data sets: what is on the disk, in which order, and with which numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.types import PromptBatch
from datamodules.video_datamodule import VideoDataModule
from lightning_modules.benchmark_module import BenchmarkModule
from lightning_modules.evaluation.results import RunResults, read_results, render_table
from lightning_modules.rollouts.types import Completion, RolloutGroup, SamplingConfig
from rewards.evaluation.metrics import aggregate
from rewards.evaluation.predictions import read_predictions, scored_items
from rewards.evaluation.scoring import predicted_answer, score_item
from tests.datamodules.evaluation.benchmark_samples import converted_example
from tests.lightning_modules.evaluation.benchmark_runs import (
    RESULT_FILES,
    benchmark_data_module,
    benchmark_module,
    bytes_of,
    evaluate,
    trainer,
)

QUESTIONS = [
    (name, index) for name, benchmark in BENCHMARKS.items() for index in range(len(converted_example(benchmark)))
]


@pytest.fixture(scope="module")
def clean_run(tiny_folder, benchmark_data, tmp_path_factory) -> Path:
    """Folder of an uninterrupted run of all benchmarks."""
    folder = tmp_path_factory.mktemp("run")
    evaluate(benchmark_module(tiny_folder, folder), benchmark_data_module(tiny_folder, benchmark_data))
    return folder


def results_of(folder: Path) -> RunResults:
    return read_results(folder / "results.json")


def test_every_question_is_answered_once_in_the_order_of_the_files(clean_run):
    predictions = read_predictions(clean_run / "predictions.jsonl")
    assert [(row.benchmark, row.index) for row in predictions] == QUESTIONS
    assert all(row.failure is None and row.completion_tokens in range(1, 7) for row in predictions)
    assert sorted(path.name for path in clean_run.iterdir()) == [
        "manifest.json",
        "predictions.jsonl",
        "reference",
        "report.html",
        "report.md",
        "results.json",
    ]


def test_the_report_shows_the_frames_of_every_question(clean_run):
    page = (clean_run / "report.html").read_text(encoding="utf-8")
    assert page.count("<article") == page.count('src="data:image/jpeg;base64,') == len(QUESTIONS)


def test_rows_hold_the_record_and_the_scores_of_both_rules(clean_run, benchmark_data):
    predictions = read_predictions(clean_run / "predictions.jsonl")
    for name in BENCHMARKS:
        records = json.loads((benchmark_data / f"eval_{name}.json").read_text())
        rows = [row for row in predictions if row.benchmark == name]
        for record, row in zip(records, rows, strict=True):
            assert (row.question, row.path, row.options) == (record["problem"], record["path"], record["options"] or [])
            assert (row.start, row.end) == (record.get("start"), record.get("end"))
            assert row.answer == predicted_answer(row.completion)
            assert row.num_frames == 4
            for rule in {"videorft", "official"} - row.ungraded.keys():
                assert row.scores[rule] == score_item(
                    BENCHMARKS[name],
                    rule,
                    problem_type=record["problem_type"],
                    categories=BENCHMARKS[name].categories(record),
                    prediction=row.answer,
                    answer=row.gold,
                )
    timed = [(row.start, row.end) for row in predictions if row.benchmark == "mvbench"]
    assert timed == [(0.0, 1.0), (None, None), (0.0, 1.0), (None, None)]
    ungraded = [(row.benchmark, row.problem_type) for row in predictions if row.ungraded]
    assert ungraded == [("videommmu", "free-form"), ("tempcompass", "free-form")]


class ScriptedEngine:
    """Answers from a table (benchmark file's stem, problem id) -> text, where the model's own would all be wrong."""

    def __init__(self, answers: dict[tuple[str, str], str]) -> None:
        self.answers = answers

    def generate(
        self, batch: PromptBatch, config: SamplingConfig, *, group_size: int, seeds: Sequence[int]
    ) -> list[RolloutGroup]:
        nothing = torch.zeros(0)
        groups = []
        for prompt in batch.prompts:
            text = self.answers[prompt.record.file.stem, prompt.record.problem_id]
            completion = Completion(
                token_ids=torch.zeros(3, dtype=torch.long),
                text=f"<think>so</think><answer>{text}</answer>",
                sampling_logprobs=nothing,
                policy_logprobs=nothing,
                truncated=False,
            )
            groups.append(RolloutGroup(prompt=prompt, completions=(completion,)))
        return groups

    def sync_weights(self) -> None:
        pass


class ScriptedModule(BenchmarkModule):
    def configure_model(self) -> None:
        super().configure_model()
        golds = {"vsibench": ["A", "A", "1", "2.0"], "videomme": ["A", "B", "C", "A"], "tempcompass": "ABAx"}
        self.engine = ScriptedEngine(
            {(f"eval_{name}", str(index)): text for name, texts in golds.items() for index, text in enumerate(texts)}
        )


@pytest.fixture(scope="module")
def scripted_run(tiny_folder, benchmark_data, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """A run with known answers on three benchmarks, and what it logged."""
    folder = tmp_path_factory.mktemp("scripted")
    module = ScriptedModule(output=str(folder), model_name_or_path=str(tiny_folder))
    names = ["vsibench", "tempcompass", "videomme"]
    run = evaluate(module, benchmark_data_module(tiny_folder, benchmark_data, benchmarks=names))
    return folder, {name: value.item() for name, value in run.callback_metrics.items()}


def test_means_of_known_answers(scripted_run):
    folder, _ = scripted_run
    results = results_of(folder).benchmarks

    def means(name, rule):
        return {mean: facts.value for mean, facts in results[name].scoring_rules[rule].means.items()}

    # A B C of A B C D: three of four right. The four durations are short, medium, long, long.
    assert means("videomme", "videorft")["mean_acc"] == 0.75
    official = means("videomme", "official")
    assert (official["overall"], official["duration/short"], official["duration/long"]) == (75.0, 100.0, 50.0)
    # A of A right, A of B wrong; 1 of 2 is off by 0.5, which passes theta = 0.5 alone officially and not in the script;
    # 2.0 of 2.0 is exact. Official: order 100, direction 0, counting 10, distance 100.
    vsi = means("vsibench", "videorft")
    assert (vsi["mean_acc"], vsi["mean_mra"]) == pytest.approx((0.5, 0.5))
    assert means("vsibench", "official")["overall"] == pytest.approx((100 + 0 + 10 + 100) / 4)
    # Right, right, A of B wrong, and a caption that only the script gives a score, 0.
    assert means("tempcompass", "videorft")["mean_acc"] == pytest.approx(2 / 4)
    assert means("tempcompass", "official")["overall"] == pytest.approx(100 * 2 / 3)
    counts = results["tempcompass"].scoring_rules["official"]
    assert (counts.scored, counts.failed, counts.ungraded) == (3, 0, 1)
    assert (results["videomme"].well_formed, results["videomme"].truncated) == (4, 0)


def test_headline_means_are_logged(scripted_run):
    _, logged = scripted_run
    assert logged["val/videomme/official/overall"] == 75.0
    assert logged["val/vsibench/videorft/mean_mra"] == pytest.approx(0.5)
    assert set(logged) == {
        "val/vsibench/videorft/mean_acc",
        "val/vsibench/videorft/mean_mra",
        "val/vsibench/official/overall",
        "val/tempcompass/videorft/mean_acc",
        "val/tempcompass/official/overall",
        "val/videomme/videorft/mean_acc",
        "val/videomme/official/overall",
    }


def test_reference_export_adds_to_the_records_as_they_are(scripted_run, benchmark_data):
    folder, _ = scripted_run
    export = json.loads((folder / "reference" / "eval_videomme_output.json").read_text())
    records = json.loads((benchmark_data / "eval_videomme.json").read_text())
    added = [
        {
            "output": f"<think>so</think><answer>{letter}</answer>",
            "prediction": letter,
            "reward": reward,
            "correct": reward == 1.0,
            "process": "<think>so</think>",
        }
        for letter, reward in zip("ABCA", (1.0, 1.0, 1.0, 0.0), strict=True)
    ]
    assert export["results"] == [record | more for record, more in zip(records, added, strict=True)]
    assert export["final_acc"] == [{"mean_acc": 0.75, "mean_mra": 0.0, "scored": 4, "failed": 0}]


def test_results_are_those_of_the_predictions(clean_run):
    predictions = read_predictions(clean_run / "predictions.jsonl")
    for name, results in results_of(clean_run).benchmarks.items():
        for rule, numbers in results.scoring_rules.items():
            items = scored_items([row for row in predictions if row.benchmark == name], rule)
            means = aggregate(BENCHMARKS[name], rule, items)
            assert means.keys() == numbers.means.keys()
            for mean, facts in numbers.means.items():
                assert facts.value == means[mean].value
                assert facts.low <= facts.value <= facts.high


def test_part_of_a_benchmark_is_said_to_be_one(clean_run):
    notes = results_of(clean_run).benchmarks["videomme"].notes
    assert notes == ["4 questions where Video-MME has 2,700: the score is that of a part."]


def test_a_benchmark_gives_the_same_answers_alone_and_with_others(tiny_folder, benchmark_data, clean_run, tmp_path):
    data = benchmark_data_module(tiny_folder, benchmark_data, benchmarks=["mvbench"])
    evaluate(benchmark_module(tiny_folder, tmp_path), data, stage="test")
    together = [row for row in read_predictions(clean_run / "predictions.jsonl") if row.benchmark == "mvbench"]
    assert read_predictions(tmp_path / "predictions.jsonl") == together


@pytest.fixture
def damaged_data(benchmark_data, tmp_path) -> Path:
    """Video-MME without its first video, with a broken second one, and with a third question beyond its video's end."""
    root = tmp_path / "damaged"
    (root / "Video-MME").mkdir(parents=True)
    shutil.copytree(benchmark_data / "Video-MME" / "data", root / "Video-MME" / "data")
    records = json.loads((benchmark_data / "eval_videomme.json").read_text())
    (root / records[0]["path"]).unlink()
    (root / records[1]["path"]).write_bytes(b"no video")
    records[2] |= {"start": 60.0, "end": 70.0}
    (root / "eval_videomme.json").write_text(json.dumps(records))
    return root


def test_failed_items_have_reasons_and_are_in_no_denominator(tiny_folder, damaged_data, tmp_path):
    data = benchmark_data_module(tiny_folder, damaged_data, benchmarks=["videomme"])
    run = evaluate(benchmark_module(tiny_folder, tmp_path / "run"), data)
    rows = read_predictions(tmp_path / "run" / "predictions.jsonl")
    reasons = ["does not exist", "cannot be read|no video|Invalid", "lies beyond the end of the video"]
    for number, (row, reason) in enumerate(zip(rows, reasons, strict=False), start=1):
        assert row.failure.startswith(f"{data.paths['videomme']}:{number} (problem_id {number - 1}): ")
        assert any(part in row.failure for part in reason.split("|")), row.failure
        assert (row.completion, row.answer, row.prompt_tokens) == (None, None, None)
        assert row.scores == {"videorft": None, "official": None}
    assert rows[3].failure is None
    results = results_of(tmp_path / "run").benchmarks["videomme"]
    assert (results.items, results.answered, results.failed) == (4, 1, 3)
    said = f"Video-MME: 3 of 4 questions failed and are in no mean, first: {rows[0].failure}"
    assert said in render_table({"videomme": results}).splitlines()
    assert [failure.problem_id for failure in results.failures] == ["0", "1", "2"]
    overall, short = (results.scoring_rules["official"].means[name] for name in ("overall", "duration/short"))
    assert (overall.scored, overall.failed) == (1, 3)
    assert (short.value, short.scored, short.failed) == (None, 0, 1)
    assert run.callback_metrics["val/videomme/official/overall"] == overall.value
    export = json.loads((tmp_path / "run" / "reference" / "eval_videomme_output.json").read_text())
    assert (export["results"][0]["reward"], export["results"][0]["failure"]) == (None, rows[0].failure)
    assert export["final_acc"][0]["scored"] == 1


def test_all_failed_items_give_no_mean(tiny_folder, damaged_data, tmp_path):
    data = benchmark_data_module(tiny_folder, damaged_data, benchmarks=["videomme"], limit=3)
    run = evaluate(benchmark_module(tiny_folder, tmp_path / "run"), data)
    results = results_of(tmp_path / "run").benchmarks["videomme"]
    assert results.scoring_rules["official"].means["overall"].value is None
    assert not run.callback_metrics


def test_repaired_media_are_retried_on_request(tiny_folder, benchmark_data, damaged_data, clean_run, tmp_path):
    shutil.copy(benchmark_data / "eval_videomme.json", damaged_data)
    data = {"benchmarks": ["videomme"]}
    evaluate(benchmark_module(tiny_folder, tmp_path / "run"), benchmark_data_module(tiny_folder, damaged_data, **data))
    shutil.copytree(benchmark_data / "Video-MME", damaged_data / "Video-MME", dirs_exist_ok=True)
    repaired = benchmark_data_module(tiny_folder, damaged_data, **data)
    with pytest.raises(ValueError, match=r"data\.videomme\.media\.missing: 1 then, 0 now"):
        evaluate(benchmark_module(tiny_folder, tmp_path / "run"), repaired)
    evaluate(benchmark_module(tiny_folder, tmp_path / "run", retry_failed=True), repaired)
    together = [row for row in read_predictions(clean_run / "predictions.jsonl") if row.benchmark == "videomme"]
    assert read_predictions(tmp_path / "run" / "predictions.jsonl") == together


def test_likelihood_answers_choices_and_generates_the_rest(tiny_folder, benchmark_data, clean_run, tmp_path):
    module = benchmark_module(tiny_folder, tmp_path, choice_scoring="likelihood")
    evaluate(module, benchmark_data_module(tiny_folder, benchmark_data))
    generated = {(row.benchmark, row.index): row for row in read_predictions(clean_run / "predictions.jsonl")}
    for row in read_predictions(tmp_path / "predictions.jsonl"):
        if row.problem_type == "multiple choice":
            assert row.answer == max(row.option_logprobs, key=row.option_logprobs.get)
            assert len(row.option_logprobs) == len(row.options) >= 2
            assert (row.completion, row.truncated, row.failure) == (None, None, None)
        else:
            assert row.option_logprobs is None
            assert row.completion == generated[row.benchmark, row.index].completion
    assert results_of(tmp_path).choice_scoring == "likelihood"


def test_fast_dev_run_writes_nothing(tiny_folder, benchmark_data, tmp_path):
    output = tmp_path / "run"
    data = benchmark_data_module(tiny_folder, benchmark_data)
    run = evaluate(benchmark_module(tiny_folder, output), data, fast_dev_run=True)
    assert not output.exists()
    assert run.callback_metrics["val/vsibench/official/overall"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_type": "regression", "solution": "<answer>two</answer>"}, "'two' is not a number"),
        ({"original_question_type": "weather"}, "original_question_type is 'weather'"),
        ({"start": 2.0, "end": 1.0}, "needed is 0 <= start < end"),
    ],
)
def test_records_that_cannot_be_scored_are_refused_before_the_model_is_loaded(
    tiny_folder, benchmark_data, tmp_path, change, message
):
    records = json.loads((benchmark_data / "eval_vsibench.json").read_text())
    records[1] |= change
    file = tmp_path / "vsi.json"
    file.write_text(json.dumps(records))
    data = benchmark_data_module(tiny_folder, benchmark_data, benchmarks=["vsibench"], files={"vsibench": str(file)})
    module = benchmark_module(tiny_folder, tmp_path / "run")
    with pytest.raises(ValueError, match=rf"1 questions cannot be evaluated:\n  {file}:2 \(problem_id 1\): ") as error:
        evaluate(module, data)
    assert message in str(error.value)
    assert not hasattr(module, "policy")
    assert not (tmp_path / "run").exists()


def test_other_stages_and_data_are_refused(tiny_folder, benchmark_data, mixed_data, tmp_path):
    module = benchmark_module(tiny_folder, tmp_path)
    with pytest.raises(ValueError, match="is for validate and test, not for predict"):
        trainer().predict(module, datamodule=benchmark_data_module(tiny_folder, benchmark_data))
    other = VideoDataModule(str(tiny_folder), data_root=str(mixed_data.parent), val_files=[str(mixed_data)])
    with pytest.raises(ValueError, match="this is validate on VideoDataModule"):
        evaluate(module, other)


def test_a_checkpoint_is_to_be_exported_first(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"cli\.py export --ckpt_path"):
        benchmark_module(tiny_folder, tmp_path).on_load_checkpoint({})


def test_interrupted_after_the_last_answer(tiny_folder, benchmark_data, clean_run, tmp_path):
    """All answered, nothing merged: a further run has an empty loader and still writes the results."""
    folder = shutil.copytree(clean_run, tmp_path / "run")
    (folder / "predictions.jsonl").rename(folder / "predictions.rank0.partial.jsonl")
    for name in RESULT_FILES[1:]:
        (folder / name).unlink()
    evaluate(benchmark_module(tiny_folder, folder), benchmark_data_module(tiny_folder, benchmark_data))
    assert bytes_of(folder) == bytes_of(clean_run)
