"""The rewards of a file outside the repository, as docs/rewards.md shows them, in a run by YAML alone."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import cli
from rewards.registry import REWARDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rewards.md").read_text()
GRPO, CPU = (str(ROOT / "configs" / name) for name in ("grpo/qwen2_5_vl_7b.yaml", "trainer/cpu.yaml"))
PROFILE = {"num_frames": 4, "min_pixels": 784, "max_pixels": 3136, "image_max_pixels": 3136}


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A folder with the files of the page, on the path and the working directory of the run."""
    for name, text in re.findall(r"```(?:python|yaml)\n# (\w+\.\w+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rewards.registry.REWARDS", dict(REWARDS))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # restored after the test, whatever Lightning wrote there
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    yield tmp_path
    sys.modules.pop("my_rewards", None)


@pytest.fixture
def run_options(user_folder, tiny_folder, mixed_data):
    (user_folder / "small.yaml").write_text(
        f"model: {{init_args: {{model_name_or_path: {tiny_folder}, sampling: {{max_new_tokens: 6}}}}}}\n"
        f"data: {{init_args: {{data_root: {mixed_data.parent}, train_files: [{mixed_data}], num_workers: 0, "
        f"train_frames: {json.dumps(PROFILE)}}}}}\n"
        f"trainer: {{fast_dev_run: true, default_root_dir: {user_folder}, enable_progress_bar: false, "
        "enable_model_summary: false}\n"
    )
    return [f"--config={file}" for file in (GRPO, CPU, "small.yaml", "my_run.yaml")]


def test_the_pages_rewards_score_the_rollouts_of_a_run(run_options):
    run = cli.lightning_cli(["fit", *run_options])
    assert run.trainer.global_step == 1
    breakdown, groups = run.model.last_rollouts.breakdown, run.model.last_rollouts.groups
    assert list(breakdown.components) == ["accuracy", "brevity", "names_a_moment", "strict_brevity"]
    tokens = torch.tensor([[len(completion.token_ids) for completion in group.completions] for group in groups])
    torch.testing.assert_close(breakdown.components["brevity"], 1 - tokens / 400)
    torch.testing.assert_close(breakdown.components["strict_brevity"], 1 - tokens / 64)
    assert breakdown.contributions["strict_brevity"].count_nonzero() == 0
    right = breakdown.components["accuracy"] > 0
    torch.testing.assert_close(breakdown.contributions["brevity"], 0.5 * right * (1 - tokens / 400))
    assert "train/reward/names_a_moment/mean" in run.trainer.callback_metrics


def test_the_pages_rewards_score_the_gold_answers(run_options, capsys):
    assert cli.main(["check", "rewards", *run_options]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("accuracy", "brevity", "names_a_moment", "strict_brevity"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{class_path: my_rewards.Brevitee}", "Brevitee"),
        ("{class_path: my_rewards.Brevity, init_args: {limt: 3}}", "limt"),
        (
            "{class_path: my_rewards.Brevity, init_args: {problem_types: [essay]}}",
            "'brevity' has .*'essay'",
        ),
        ("{class_path: rewards.FunctionReward, init_args: {function: my_rewards.absent}}", "has no 'absent'"),
        ("{class_path: rewards.registered, init_args: {reward: absent}}", "No reward is registered as 'absent'"),
    ],
)
def test_a_mistake_in_the_yaml_is_one_message_before_the_model_is_loaded(run_options, capsys, entry, message):
    try:
        status = cli.main(["fit", *run_options, f"--model.init_args.rewards=[{entry}]"])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(message, said)
