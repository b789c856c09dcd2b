"""The GRPO group benchmark: equal work on both sides, hand-counted arithmetic, and a whole quick run."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.performance.measure import in_fresh_process
from tests.performance.operations import decoder_weights, update_operations
from tests.performance.random_models import SIZES, VIDEO_TOKEN, build_models, video_grid, video_prompt
from tests.performance.shared_prefix import UPDATE_METHODS, cost_alone
from tests.performance.shared_prefix_cases import CASES, Scenario, build_work

ROOT = Path(__file__).parents[2]
RUN_WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys({!r}))  # importing them raises
sys.argv = {!r}
runpy.run_path({!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def models():
    return build_models(SIZES["demo"], "cpu", torch.float32)


@pytest.mark.parametrize("unequal", [False, True])
def test_all_methods_compute_the_same_log_probabilities_and_gradients(models, unequal):
    sizes = {"prompt_tokens": 96, "group_size": 3, "completion_tokens": 12, "unequal": unequal}
    scenario = Scenario(case="update", methods=UPDATE_METHODS, **sizes)
    assert scenario.lengths == ([2, 7, 12] if unequal else [12, 12, 12])  # ceil(12 / 8), ceil(12 * 9 / 16), 12

    work = build_work(models, scenario)
    logprobs, gradients = {}, {}
    for method in UPDATE_METHODS:
        models.stock.zero_grad()  # all methods have the same parameters
        logprobs[method] = work[method]()
        gradients[method] = {name: p.grad.clone() for name, p in models.stock.named_parameters()}

    assert (logprobs["repeated"] != 0).sum(dim=1).tolist() == scenario.lengths
    for method in UPDATE_METHODS:
        torch.testing.assert_close(logprobs[method], logprobs["repeated"], rtol=0, atol=2e-5)
        for name, expected in gradients["repeated"].items():
            error = (gradients[method][name] - expected).norm() / expected.norm().clamp(min=1e-6)
            assert error < 1e-3, (method, name)


def test_every_sampler_takes_all_its_tokens_and_no_vision_token(models):
    scenario = Scenario(case="rollout", methods=("repeated", "generate", "ours"), prompt_tokens=64, completion_tokens=5)
    for method, sample in build_work(models, scenario).items():
        completions = torch.stack(list(sample()))
        assert completions.shape == (8, 5), method
        assert completions.min() > VIDEO_TOKEN, method


@pytest.mark.parametrize("tokens", [64, 512, 1024, 8192])
def test_a_prompt_has_the_asked_length_and_is_mostly_video(tokens):
    prompt = video_prompt(SIZES["demo"], tokens)
    assert len(prompt.input_ids) == tokens
    frames, rows, columns = video_grid(tokens)
    features = (prompt.input_ids == VIDEO_TOKEN).sum()
    assert features == frames * rows * columns == prompt.vision.grid_thw.prod() // 4
    assert 0.75 <= features / tokens <= 0.9


def test_operations_of_the_published_7b_size():
    # A layer of 7B: 2 * 3584^2 for queries and output, 2 * 3584 * 512 for keys and values, 3 * 3584 * 18944 for the
    # feed-forward part: 233,046,016 weights; 28 layers: 6.525e9.
    size = SIZES["7b"]
    assert decoder_weights(size) == 28 * 233_046_016
    # At P = 1024 and 8 completions of 256 tokens rows hold 8 * 1280 tokens, packed 1024 + 8 * 255; the difference of
    # 7176 tokens costs 6 operations per weight, and the share of attention, head and video is small against it.
    repeated, ours = (update_operations(size, 1024, [256] * 8, method) for method in ("repeated", "ours"))
    assert 1 < (repeated - ours) / (6 * 7176 * decoder_weights(size)) < 1.6


def test_the_cost_of_a_method_is_measured_in_a_fresh_process():
    # Hidden states [2048, 128] and logits of 512 rows are 1 and 16 MiB; all logits would be 64, twice.
    scenario = Scenario(case="logprobs", methods=("repeated",), group_size=2, completion_tokens=1024, vocabulary=8192)
    options = Namespace(size="demo", device="cpu", threads=1, gradient_checkpointing=False)
    whole, seconds = in_fresh_process(cost_alone, scenario, options)
    in_chunks, _ = in_fresh_process(cost_alone, replace(scenario, methods=("ours",)), options)
    assert 128 < whole < 512 and 16 < in_chunks < 64
    assert seconds > 0


def test_a_quick_run_without_media_and_training_packages_reports_every_case(tmp_path):
    output = tmp_path / "quick.json"
    script = str(ROOT / "tests" / "performance" / "shared_prefix.py")
    blocked = ["av", "decord", "torchcodec", "lightning", "jsonargparse", "torchmetrics", "datasets"]
    arguments = [script, "--quick", "--repeats", "1", "--output", str(output)]

    result = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT.format(blocked, arguments, script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )

    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    assert {row["case"] for row in report["rows"]} == set(CASES)
    assert {row["lengths"] for row in report["rows"]} == {"equal", "unequal"}
    for row in report["rows"]:
        for key in ("seconds", "peak_memory_mib", "repeated_time_ratio", "repeated_memory_ratio", "tokens_per_second"):
            assert row[key] > 0, (row, key)
        for baseline in {"repeated", "strongest"} & {row["method"]}:
            assert row[f"{baseline}_time_ratio"] == row[f"{baseline}_memory_ratio"] == 1
    updates = [row for row in report["rows"] if row["case"] == "update" and row["lengths"] == "equal"]
    assert [row["method"] for row in updates] == list(UPDATE_METHODS)
    assert all(row["strongest_time_ratio"] > 0 for row in updates)
    table = output.with_suffix(".md").read_text()
    assert table.count("\n| ") == len(report["rows"]) + 1  # and the heading
    assert output.with_suffix(".png").stat().st_size > 10_000
