"""`check batch`: what a run stored is found again, and found to be gone where the fault is gone."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import cli
from tests.lightning_modules.module_runs import LetterReward

ROOT = Path(__file__).parent.parent
GRPO, SFT, CPU = (
    ROOT / "configs" / name for name in ("grpo/qwen2_5_vl_7b.yaml", "sft/qwen2_5_vl_7b.yaml", "trainer/cpu.yaml")
)


class HugeReward(LetterReward):
    """Not finite in float32 for any record."""

    name = "huge"

    def score(self, group, raw):
        return [1e300] * len(group.completions)


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(sys, "argv", ["cli.py"])


@pytest.fixture
def fit(tiny_folder, mixed_data, tmp_path):
    """Runs the shipped configuration on a tiny model; gives the exit status."""

    def runner(base, *more, model=tiny_folder):
        frames = "{num_frames: 4, min_pixels: 784, max_pixels: 3136, image_max_pixels: 3136}"
        return status(
            "fit",
            *("-c", base, "-c", CPU),
            f"--model.init_args.model_name_or_path={model}",
            f"--data.init_args.data_root={mixed_data.parent}",
            f"--data.init_args.train_files=[{mixed_data}]",
            f"--data.init_args.train_frames={frames}",
            "--data.init_args.num_workers=0",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.max_steps=2",
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks=[{class_path: lightning_modules.callbacks.HFExport}]",
            *more,
        )

    return runner


@pytest.fixture
def poisoned_folder(tiny_folder, tmp_path):
    """The tiny model with one weight that is not a number."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "poisoned")
    AutoProcessor.from_pretrained(tiny_folder).save_pretrained(tmp_path / "poisoned")
    return tmp_path / "poisoned"


def status(*arguments):
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return leaving.code


def stored_file(message):
    (command,) = re.findall(r"replay: python (cli\.py check batch \S+\.pt)\n", message)
    return command.split()[-1]


SHORT = "--model.init_args.sampling.max_new_tokens=6"


@pytest.mark.parametrize(("base", "more"), [(SFT, ()), (GRPO, (SHORT,))], ids=["sft", "grpo"])
def test_a_poisoned_model_trains_no_step_and_is_found_again(
    fit, poisoned_folder, tiny_folder, tmp_path, capsys, base, more
):
    assert fit(base, *more, model=poisoned_folder) == 2
    said = capsys.readouterr().err
    assert "error: Step 1 is not finite" in said and "Traceback" not in said
    assert not (tmp_path / "model").exists()
    file = stored_file(said)
    assert status("check", "batch", file) == 1
    out = capsys.readouterr().out
    assert "not finite in these weights: model.model.language_model.layers.0.mlp.down_proj.weight" in out
    assert re.search(r"^ *nan +not finite: model\.model\..* mixed\.jsonl:\d+ \(problem_id \d+\)|nan", out, re.MULTILINE)
    whole = tmp_path / "whole.yaml"
    whole.write_text(f"model: {{init_args: {{model_name_or_path: {tiny_folder}}}}}")
    options = ["-c", base, "-c", CPU, "-c", whole, f"--ckpt_path={tmp_path / 'absent.ckpt'}"]
    assert status("check", "batch", file, *options) == 2
    assert "absent.ckpt', which does not exist" in capsys.readouterr().err
    assert status("check", "batch", file, *options[:-1]) == 0
    assert "Everything is finite with these weights." in capsys.readouterr().out


def test_rewards_are_computed_again(fit, capsys):
    rewards = "--model.init_args.rewards=[{class_path: tests.test_check_batch.HugeReward}]"
    assert fit(GRPO, SHORT, rewards) == 2
    said = capsys.readouterr().err
    assert "Reward 'huge' on problem_id" in said
    assert status("check", "batch", stored_file(said)) == 1
    assert "rewards: Reward 'huge' on problem_id" in capsys.readouterr().out


def test_what_is_no_stored_batch_is_refused(tmp_path, capsys):
    assert status("check", "batch", tmp_path / "absent.pt") == 2
    assert "is not a file" in capsys.readouterr().err
    (tmp_path / "text.pt").write_text("no batch")
    assert status("check", "batch", tmp_path / "text.pt") == 2
    assert "cannot be read" in capsys.readouterr().err
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    assert status("check", "batch", tmp_path / "other.pt") == 2
    assert "is no batch of this version" in capsys.readouterr().err
