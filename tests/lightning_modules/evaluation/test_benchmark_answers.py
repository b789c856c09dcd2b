"""Which items are written, which are chosen, and which cannot be either."""

from __future__ import annotations

import json

import pytest

from rewards.evaluation.predictions import read_predictions
from tests.lightning_modules.evaluation.benchmark_runs import benchmark_data_module, benchmark_module, evaluate


def rows_of(model, root, records, output, **options):
    file = output / "questions.json"
    file.write_text(json.dumps(records))
    data = benchmark_data_module(model, root, benchmarks=["videomme"], files={"videomme": str(file)}, eval_batch_size=4)
    evaluate(benchmark_module(model, output / "run", **options), data)
    return read_predictions(output / "run" / "predictions.jsonl")


@pytest.fixture
def records(benchmark_data):
    return json.loads((benchmark_data / "eval_videomme.json").read_text())


def test_options_without_letters_fail_under_likelihood_alone(tiny_folder, benchmark_data, records, tmp_path):
    records[1]["options"] = ["red", "green"]
    records[2] |= {"solution": "<answer>blue</answer>"}
    rows = rows_of(tiny_folder, benchmark_data, records, tmp_path, choice_scoring="likelihood")
    assert [row.failure is None for row in rows] == [True, False, False, True]
    assert "give the letters none" in rows[1].failure
    assert "the right answer 'blue' is none of the letters A, B, C, D" in rows[2].failure
    assert [row.scores["videorft"] is None for row in rows] == [False, True, True, False]


def test_options_without_letters_are_answered_in_words(tiny_folder, benchmark_data, records, tmp_path):
    records[1]["options"] = ["red", "green"]
    rows = rows_of(tiny_folder, benchmark_data, records, tmp_path)
    assert all(row.failure is None and row.completion is not None for row in rows)


def test_the_prefix_reaches_the_scores(tiny_folder, benchmark_data, records, tmp_path):
    scored = []
    for number, prefix in enumerate(("<answer>", "The answer is ")):
        output = tmp_path / str(number)
        output.mkdir()
        options = {"choice_scoring": "likelihood", "answer_prefix": prefix}
        scored.append(rows_of(tiny_folder, benchmark_data, records[:1], output, **options)[0].option_logprobs)
    assert scored[0].keys() == scored[1].keys()
    assert all(abs(scored[0][letter] - scored[1][letter]) > 1e-3 for letter in scored[0])


def test_text_and_image_items_are_answered_beside_videos(tiny_folder, benchmark_data, records, tmp_path):
    records[1] |= {"data_type": "text", "path": None}
    rows = rows_of(tiny_folder, benchmark_data, records, tmp_path)
    assert [row.num_frames for row in rows] == [4, None, 4, 4]
    assert rows[1].prompt_tokens < rows[0].prompt_tokens
    assert rows[1].failure is None


def test_an_answer_does_not_depend_on_a_failed_neighbor(tiny_folder, benchmark_data, records, tmp_path):
    """Its seed is its own: the failed item takes none away."""
    whole = rows_of(tiny_folder, benchmark_data, records, tmp_path)
    records[1]["path"] = "./missing.mp4"
    output = tmp_path / "damaged"
    output.mkdir()
    damaged = rows_of(tiny_folder, benchmark_data, records, output)
    assert damaged[1].failure is not None
    assert [damaged[place].completion for place in (0, 2, 3)] == [whole[place].completion for place in (0, 2, 3)]
