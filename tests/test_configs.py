"""The shipped YAML files: each parses, those of full size show the published numbers and run on a tiny model."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import seed_everything

import cli
from lightning_modules.policy.adapters import adapter_parameters, is_adapter
from lightning_modules.policy.loading import load_policy

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
CPU = CONFIGS / "trainer" / "cpu.yaml"
WHOLE_RUN = CONFIGS / "grpo" / "qwen2_5_vl_7b.yaml"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # restored after the test, whatever Lightning wrote there


def config_id(path):
    return str(path.relative_to(CONFIGS))


def options(*files):
    return [f"--config={path}" for path in files]


def dropped(given: Any, parsed: Any, place: str = "") -> list[str]:
    """Places of a YAML file whose value is not in the parsed configuration."""
    if isinstance(given, dict):
        found = {key: parsed[key.removesuffix("+")] for key in given if key.removesuffix("+") in parsed}
        found |= {key: found[key][-len(given[key]) :] for key in found if key.endswith("+")}  # added to a list's end
        return [
            lost
            for key, value in given.items()
            for lost in (dropped(value, found[key], f"{place}.{key}") if key in found else [f"{place}.{key}"])
        ]
    if isinstance(given, list):
        pairs = zip(given, parsed[: len(given)], strict=True)  # a trainer file may add to the end
        return [lost for number, (a, b) in enumerate(pairs) for lost in dropped(a, b, f"{place}[{number}]")]
    return [] if given == parsed else [f"{place}: {given!r} became {parsed!r}"]


@cache
def parsed(*files):
    return cli.lightning_cli(options(*files), run=False).config.as_dict()


@pytest.mark.parametrize("path", FILES, ids=config_id)
def test_every_file_parses_and_loses_nothing(path):
    given = yaml.safe_load(path.read_text())
    files = [path, CPU] if "model" in given else [WHOLE_RUN, CPU, path]
    later = yaml.safe_load(CPU.read_text())["trainer"] if "model" in given else {}
    given.get("trainer", {}).update(later)
    assert dropped(given, parsed(*files)) == []


RUNS = [path for path in FILES if path.parent.name in ("sft", "grpo")]
TRAINERS = [path for path in FILES if path.parent.name == "trainer"]


@pytest.mark.parametrize("trainer", TRAINERS, ids=config_id)
@pytest.mark.parametrize("run", RUNS, ids=config_id)
def test_every_run_stacks_with_every_trainer(run, trainer):
    alone, stacked = parsed(run), deepcopy(parsed(run, trainer))
    assert stacked["model"] == alone["model"]
    assert stacked["data"] == alone["data"]
    own, ours = (yaml.safe_load(path.read_text())["trainer"] for path in (run, trainer))
    assert dropped(ours, stacked["trainer"]) == []
    count = len(own.get("callbacks", []))
    stacked["trainer"]["callbacks"] = stacked["trainer"]["callbacks"][:count]  # what the trainer adds comes after
    assert dropped({key: value for key, value in own.items() if key not in ours}, stacked["trainer"]) == []


def test_a_watchdog_speaks_before_its_process_group_gives_up():
    shown = yaml.safe_load((CONFIGS / "trainer" / "fsdp_multinode.yaml").read_text())["trainer"]
    (watchdog,) = [entry for entry in shown["callbacks+"] if entry["class_path"].endswith("Watchdog")]
    assert watchdog["init_args"]["seconds"] < shown["strategy"]["init_args"]["timeout_seconds"]


def test_files_are_found():
    assert {"cpu", "1gpu", "ddp", "fsdp", "fsdp_multinode"} <= {path.stem for path in TRAINERS}
    assert {"demo", "sft", "grpo", "trainer", "debug"} <= {path.parent.name for path in FILES}


def printed(capsys, path):
    """What `fit --print_config` shows."""
    with pytest.raises(SystemExit) as leaving:
        cli.main(["fit", *options(path), "--print_config"])
    assert leaving.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def values(tree, *paths):
    found = {}
    for path in paths:
        node = tree
        for key in path.split("."):
            node = node[key]
        found[path] = node
    return found


def test_grpo_shows_the_published_hyper_parameters(capsys):
    shown = printed(capsys, WHOLE_RUN)
    model, data = shown["model"]["init_args"], shown["data"]["init_args"]
    published = {
        "group_size": 8,
        "loss_config.beta": 0.04,
        "sampling.temperature": 1.0,
        "sampling.top_p": 0.95,
        "sampling.max_new_tokens": 1024,
        "optimizer.learning_rate": 1e-6,
        "optimizer.schedule": "cosine",
        "optimizer.schedule_horizon": "epochs",
        "loss_config.kl_beyond_clamp": "constant",
        "optimizer.weight_decay": 0.01,
        "max_grad_norm": 5.0,
        "inner_epochs": 1,
        "advantage_scale": "group",
        "gradient_checkpointing": True,
        "evaluation.temperature": 0.01,
        "evaluation.top_p": 0.001,
        "evaluation.max_new_tokens": 1024,
    }
    assert values(model, *published) == published
    assert [reward["class_path"] for reward in model["rewards"]][:2] == [
        "rewards.AccuracyReward",
        "rewards.FormatReward",
    ]
    assert shown["trainer"]["max_steps"] == 1000
    assert values(data, *PUBLISHED_DATA) == PUBLISHED_DATA
    assert data["train_format"] == "prompts"


def test_sft_shows_the_published_hyper_parameters(capsys):
    shown = printed(capsys, CONFIGS / "sft" / "qwen2_5_vl_7b.yaml")
    model, data, trainer = shown["model"]["init_args"], shown["data"]["init_args"], shown["trainer"]
    published = {"optimizer.learning_rate": 1e-6, "optimizer.schedule": "linear", "gradient_checkpointing": True}
    assert values(model, *published) == published
    published = {"max_epochs": 1, "accumulate_grad_batches": 2, "gradient_clip_val": 5.0}
    assert values(trainer, *published) == published
    assert trainer["max_steps"] == -1
    assert values(data, *PUBLISHED_DATA) == PUBLISHED_DATA
    assert data["train_format"] == "sft"


PUBLISHED_DATA = {
    "batch_size": 1,
    "max_prompt_tokens": 16384,
    "train_frames.num_frames": 16,
    "train_frames.min_pixels": 128 * 28 * 28,
    "train_frames.max_pixels": 128 * 28 * 28,
    "train_frames.image_max_pixels": 256 * 28 * 28,
    "eval_frames.num_frames": 32,
    "eval_frames.min_pixels": 256 * 28 * 28,
    "eval_frames.max_pixels": 256 * 28 * 28,
}


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_sizes_differ_in_nothing_but_their_name(stage):
    small, large = ((CONFIGS / stage / f"qwen2_5_vl_{size}.yaml").read_text() for size in ("3b", "7b"))
    settings = [yaml.safe_load(text) for text in (small.replace("3B", "7B").replace("_3b", "_7b"), large)]
    assert settings[0] == settings[1]


@pytest.fixture
def at_hand(tiny_folder, mixed_data, tmp_path):
    """Options that put a tiny model and generated clips in the place of the published ones."""
    small = "{num_frames: 4, min_pixels: 784, max_pixels: 3136, image_max_pixels: 3136}"
    return [
        f"--model.init_args.model_name_or_path={tiny_folder}",
        f"--data.init_args.data_root={mixed_data.parent}",
        f"--data.init_args.train_files=[{mixed_data}]",
        f"--data.init_args.train_frames={small}",
        "--data.init_args.num_workers=0",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]


@pytest.mark.parametrize(
    ("precision", "weights"),
    [("32-true", torch.float32), ("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)],
)
def test_the_grpo_run_of_full_size_takes_a_step_on_a_tiny_model(at_hand, precision, weights):
    fast = CONFIGS / "debug" / "fast_dev_run.yaml"
    short = [f"--trainer.precision={precision}", "--model.init_args.sampling.max_new_tokens=6"]
    run = cli.lightning_cli(["fit", *options(WHOLE_RUN, CPU, fast), *at_hand, *short])
    assert run.trainer.global_step == 1
    assert [len(group.completions) for group in run.model.last_rollouts.groups] == [8]
    assert torch.isfinite(run.trainer.callback_metrics["train/loss"])
    assert run.model.reference is not None
    assert {parameter.dtype for parameter in run.model.policy.parameters()} == {weights}


@pytest.mark.parametrize("base", [[], ["--model.init_args.quantization=nf4"]], ids=["bfloat16", "nf4"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_adapters_of_the_lora_run_are_float32_and_move(at_hand, base, precision):
    """32-true is that of the CPU's trainer file. The learning rate, 1e-5, is far below the spacing of bfloat16."""
    rewards = "[{class_path: tests.lightning_modules.module_runs.LetterReward}]"
    short = [
        *(f"--model.init_args.rewards={rewards}", "--model.init_args.sampling.max_new_tokens=6"),
        *("--trainer.max_steps=5", "--trainer.max_epochs=2", f"--trainer.precision={precision}"),
        *("--trainer.callbacks=null", "--trainer.logger=false", "--seed_everything=0"),
    ]
    run = cli.lightning_cli(
        ["fit", *options(CONFIGS / "grpo" / "qwen2_5_vl_7b_lora.yaml", CPU), *at_hand, *short, *base]
    )
    assert run.trainer.global_step == 5
    named = dict(run.model.policy.model.named_parameters())
    adapters = {name: weight for name, weight in named.items() if is_adapter(name)}
    assert adapters and {named[name].dtype for name in named.keys() - adapters.keys()} >= {torch.bfloat16}
    assert {weight.dtype for weight in adapters.values()} == {torch.float32}
    assert {weight.grad.dtype for weight in adapters.values()} == {torch.float32}
    states = run.trainer.optimizers[0].state
    assert {states[weight][moment].dtype for weight in adapters.values() for moment in ("exp_avg", "exp_avg_sq")} == {
        torch.float32
    }
    seed_everything(0, verbose=False)
    start = load_policy(run.model.model_name_or_path, dtype="bfloat16", lora=run.model.lora).model
    changes = [adapters[name] - weight for name, weight in adapter_parameters(start) if ".lora_A." in name]
    sizes = torch.cat([change.detach().flatten().abs() for change in changes])
    assert sizes.max() < 1e-4  # five steps of 1e-5 or less from the same start
    assert (sizes > 0).float().mean() > 0.95


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_sft_run_of_full_size_takes_a_step_on_a_tiny_model(at_hand, precision):
    files = options(CONFIGS / "sft" / "qwen2_5_vl_7b.yaml", CPU, CONFIGS / "debug" / "fast_dev_run.yaml")
    run = cli.lightning_cli(["fit", *files, *at_hand, f"--trainer.precision={precision}"])
    assert run.trainer.global_step == 1
    # An untrained model spreads its probability over about 400 tokens: ln 400 = 6.0.
    assert 4 < run.trainer.callback_metrics["train/loss"] < 9


def test_overfitting_takes_eight_batches_per_epoch(at_hand):
    files = options(CONFIGS / "sft" / "qwen2_5_vl_7b.yaml", CPU, CONFIGS / "debug" / "overfit.yaml")
    more = ["--trainer.max_epochs=2", "--trainer.logger=false", "--trainer.callbacks=null"]
    run = cli.lightning_cli(["fit", *files, *at_hand, *more, "--trainer.accumulate_grad_batches=1"])
    assert run.trainer.global_step == 2 * 8
