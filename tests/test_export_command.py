"""`python cli.py export` on what the shipped LoRA run of full size leaves behind, on a tiny model."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import cli
from lightning_modules.policy.loading import load_policy
from tests.lightning_modules.test_two_ranks import launch
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


def text_length(group, index):
    """A reward that tells completions of a random model apart, so that there is a gradient."""
    return float(len(group.completions[index]))


@pytest.mark.parametrize("quantization", ["null", "nf4"])
def test_a_lora_run_exports_with_nothing_but_its_checkpoint(at_hand, tiny_folder, tmp_path, capsys, quantization):  # noqa: F811
    reward = "{class_path: rewards.FunctionReward, init_args: {function: tests.test_export_command.text_length, "
    reward += "interface: completion, name: length_of_text}}"
    short = ["--model.init_args.sampling.max_new_tokens=6", f"--model.init_args.quantization={quantization}"]
    short += [f"--model.init_args.rewards=[{reward}]"]
    module, checkpoint = trained(at_hand, LORA_RUN, *short, "--model.init_args.dtype=float32", only_checkpoints(1))
    assert cli.main(["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "out")]) == 0
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    whole = load_policy(str(tiny_folder), lora=module.lora)
    before = logits(whole.model)
    adapters = {name: value for name, value in module.policy.state_dict().items() if ".lora_" in name}
    whole.load_state_dict(adapters, strict=False)
    torch.testing.assert_close(logits(exported), logits(whole.model), rtol=1e-4, atol=1e-4)
    assert (logits(exported) - before).abs().max() > 0.01, "the adapters have learned"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2 optimizer steps" in card and "| train/kl |" in card and "beta: 0.04" in card
    assert f"- train: `{module.trainer.datamodule.stage_files('fit')[0]}`" in card


def test_a_full_run_exports_the_trained_weights(at_hand, tmp_path, capsys):  # noqa: F811
    module, checkpoint = trained(at_hand, FULL_RUN, "--trainer.accumulate_grad_batches=1", only_checkpoints(2))
    out = tmp_path / "out"
    command = ["export", "--ckpt_path", checkpoint, "--output", str(out)]
    assert cli.main(command) == 0
    assert cli.main(command) == 0, "an earlier export is replaced"
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(out)), logits(module.policy.model))
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert cli.main([*command, "--dtype=bfloat16"]) == 0
    half = AutoModelForImageTextToText.from_pretrained(out)
    assert torch.equal(half.lm_head.weight, module.policy.model.lm_head.weight.bfloat16())
    other = tmp_path / "other.yaml"
    other.write_text(f"model: {{init_args: {{model_name_or_path: {module.model_name_or_path}}}}}")
    for given, message in (
        (options(LORA_RUN, other), "checkpoint and the run's config do not belong together"),
        (["--adapters=keep"], "trained whole weights"),
    ):
        capsys.readouterr()
        assert cli.main([*command, *given]) == 2
        assert message in capsys.readouterr().err
    assert torch.equal(AutoModelForImageTextToText.from_pretrained(out).lm_head.weight, half.lm_head.weight)


@pytest.mark.slow
def test_shards_of_two_ranks_export_what_their_run_exported(tiny_folder, mixed_data, tmp_path, capsys):
    given = [tiny_folder, mixed_data, tmp_path, "--steps=2", "--stage=sft", "--strategy=fsdp2_folders"]
    launch(2, *given)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    assert checkpoint.is_dir()
    run = tmp_path / "run.yaml"
    run.write_text(f"model: {{init_args: {{model_name_or_path: {tiny_folder}}}}}")
    command = ["export", "--ckpt_path", str(checkpoint), "--output", str(tmp_path / "out")]
    assert cli.main([*command, *options(FULL_RUN, run)]) == 0
    exported, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "model"))
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], value) for name, value in expected.items())
    assert "2 optimizer steps" in (tmp_path / "out" / "README.md").read_text()
    assert cli.main(["export", "--ckpt_path", str(tmp_path), "--output", str(tmp_path / "o"), *options(FULL_RUN)]) == 2
    assert "a distributed checkpoint has a file meta.pt" in capsys.readouterr().err


def test_mistakes_are_named(tmp_path, capsys):
    def refused(checkpoint, output, *more):
        given = ["export", "--ckpt_path", str(tmp_path / checkpoint), "--output", str(tmp_path / output), *more]
        assert cli.main(given) == 2
        return capsys.readouterr().err

    assert "none.ckpt', which does not exist" in refused("none.ckpt", "out")
    (tmp_path / "thesis.ckpt").write_text("Once upon a time")
    assert "cannot be read as a checkpoint" in refused("thesis.ckpt", "out", "-c", str(FULL_RUN))
    torch.save({"state_dict": {}, "global_step": 1}, tmp_path / "empty.ckpt")
    assert "holds no weights of a policy" in refused("empty.ckpt", "out", "-c", str(FULL_RUN))
    torch.save({"state_dict": {"policy.model.x": torch.ones(1)}, "global_step": 1}, tmp_path / "lone.ckpt")
    assert "no config.yaml" in refused("lone.ckpt", "out")
    assert "holds what no export of this project wrote" in refused("lone.ckpt", ".", "-c", str(FULL_RUN))
    assert not (tmp_path / "out").exists()
