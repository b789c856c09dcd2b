"""`python cli.py export` on what the shipped LoRA run of full size leaves behind, on a tiny model."""

from __future__ import annotations

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

import cli
from lightning_modules.policy.loading import load_policy
from tests.test_configs import CONFIGS, CPU, at_hand, options  # noqa: F401 - a fixture

IDS = torch.arange(20, 60).view(2, 20)
LORA_RUN = CONFIGS / "grpo" / "qwen2_5_vl_7b_lora.yaml"
FULL_RUN = CONFIGS / "sft" / "qwen2_5_vl_7b.yaml"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(at_hand, config, *more):  # noqa: F811
    """The module after two optimizer steps, and its checkpoint."""
    steps = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--model.init_args.optimizer.learning_rate=0.01"]
    run = cli.lightning_cli(["fit", *options(config, CPU), *at_hand, *steps, *more])
    (saving,) = (callback for callback in run.trainer.callbacks if type(callback).__name__ == "ModelCheckpoint")
    return run.model, saving.last_model_path


def only_checkpoints(steps):
    saving = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    saving["init_args"] = {"every_n_train_steps": steps, "save_last": True}
    return f"--trainer.callbacks={yaml.safe_dump([saving], default_flow_style=True).strip()}"


@pytest.mark.parametrize("quantisation", ["null", "nf4"])
def test_a_lora_run_exports_with_nothing_but_its_checkpoint(at_hand, tiny_folder, tmp_path, capsys, quantisation):  # noqa: F811
    short = ["--model.init_args.sampling.max_new_tokens=6", f"--model.init_args.quantisation={quantisation}"]
    module, checkpoint = trained(at_hand, LORA_RUN, *short, "--model.init_args.dtype=float32", only_checkpoints(1))
    assert cli.main(["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "out")]) == 0
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    whole = load_policy(str(tiny_folder), lora=module.lora)
    adapters = {name: value for name, value in module.policy.state_dict().items() if ".lora_" in name}
    whole.load_state_dict(adapters, strict=False)
    torch.testing.assert_close(logits(exported), logits(whole.model), rtol=1e-4, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2 optimizer steps" in card and "| train/kl |" in card and "beta: 0.04" in card
    assert f"- train: `{module.trainer.datamodule.stage_files('fit')[0]}`" in card


def test_a_full_run_exports_the_trained_weights(at_hand, tmp_path, capsys):  # noqa: F811
    module, checkpoint = trained(at_hand, FULL_RUN, "--trainer.accumulate_grad_batches=1", only_checkpoints(2))
    command = ["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert cli.main(command) == 0, "an earlier export is replaced"
    assert torch.equal(
        logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")), logits(module.policy.model)
    )
    assert cli.main([*command, "-c", str(LORA_RUN)]) == 2
    capsys.readouterr()


def test_mistakes_are_named(tmp_path, capsys):
    absent = ["export", "--ckpt_path", str(tmp_path / "none.ckpt"), "--output"]
    assert cli.main([*absent, str(tmp_path / "out")]) == 2
    assert "no config.yaml" in capsys.readouterr().err
    files = ["-c", str(FULL_RUN)]
    assert cli.main([*absent, str(tmp_path / "out"), *files]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "thesis.tex").touch()
    assert cli.main([*absent, str(tmp_path), *files]) == 2
    assert "not a model folder" in capsys.readouterr().err
