"""Adapters in real runs: only they train, the reference is the model without them, and runs resume."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_modules.functional.policy_loss_types import LossConfig
from lightning_modules.policy.adapters import AdapterConfig, is_adapter
from lightning_modules.policy.loading import load_policy
from lightning_modules.training.optim import OptimizerConfig
from tests.lightning_modules.module_runs import data_module, grpo_module, scalars, sft_module, trainer

LORA = AdapterConfig(r=8)
FAST = OptimizerConfig(learning_rate=1e-2, schedule="constant")


def base_weights(policy):
    weights = policy.model.state_dict()
    return {name.replace(".base_layer.", "."): value for name, value in weights.items() if not is_adapter(name)}


def fitted(module, data, folder, **options):
    run = trainer(folder, **options)
    run.fit(module, data)
    return run


def unchanged(module, tiny_folder):
    expected = load_policy(str(tiny_folder)).model.state_dict()
    found = base_weights(module.policy)
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def test_sft_trains_nothing_but_the_adapters(tiny_folder, mixed_data, tmp_path, caplog):
    module = sft_module(tiny_folder, lora=LORA, optimizer=FAST)
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    with caplog.at_level("INFO"):
        fitted(module, data, tmp_path, max_epochs=4, limit_val_batches=0, enable_checkpointing=False)
    losses = scalars(tmp_path)["train/loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert unchanged(module, tiny_folder)
    assert all(is_adapter(name) == p.requires_grad for name, p in module.policy.model.named_parameters())
    assert caplog.text.count("Parameters:") == 1


def test_grpo_starts_at_its_reference_and_moves_the_adapters(tiny_folder, mixed_data, tmp_path):
    torch.manual_seed(0)  # adapters begin at random values
    settings = LossConfig(beta=0.04)
    module = grpo_module(tiny_folder, lora=LORA, loss_config=settings, optimizer=FAST, group_size=8)
    data = data_module(tiny_folder, mixed_data, train_format="prompts")
    fitted(module, data, tmp_path, max_steps=20, max_epochs=-1, limit_val_batches=0, enable_checkpointing=False)
    logged = scalars(tmp_path)
    assert logged["train/kl"][0] == 0
    assert logged["train/kl"][-1] > 0
    assert sum(logged["train/reward/mean"][-4:]) > 1.2 * sum(logged["train/reward/mean"][:4])
    assert unchanged(module, tiny_folder)
    assert module.reference.policy is module.policy


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tiny_folder, mixed_data, tmp_path):
    def run(folder, steps, **fit):
        torch.manual_seed(0)  # adapters begin at random values
        module = sft_module(tiny_folder, lora=LORA, optimizer=FAST)
        data = data_module(tiny_folder, mixed_data, train_format="sft")
        saving = ModelCheckpoint(dirpath=folder / "saved", every_n_train_steps=2, save_last=True)
        options = {"max_steps": steps, "max_epochs": -1, "limit_val_batches": 0, "callbacks": [saving]}
        lightning = trainer(folder, logger=TensorBoardLogger(folder), **options)
        lightning.fit(module, data, **fit)
        return module

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "part", 2)
    last = tmp_path / "part" / "saved" / "last.ckpt"
    resumed = run(tmp_path / "rest", 4, ckpt_path=last)
    for (name, expected), found in zip(whole.policy.named_parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(expected, found), name
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert len(saved) == 28 and all(map(is_adapter, saved))  # 7 layers, 2 blocks, A and B

    other = sft_module(tiny_folder, lora=AdapterConfig(r=4))
    with pytest.raises(ValueError, match="28 there, 28 here, and 28 differ"):
        fitted_from(other, data_module(tiny_folder, mixed_data, train_format="sft"), tmp_path / "other", last)


def fitted_from(module, data, folder, checkpoint):
    trainer(folder, max_steps=4, limit_val_batches=0).fit(module, data, ckpt_path=checkpoint)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_quantized_base_and_optimizer_train(tiny_folder, mixed_data, tmp_path, name):
    optimizer = OptimizerConfig(name=name, learning_rate=1e-2, schedule="constant")
    module = sft_module(tiny_folder, lora=AdapterConfig(r=32), quantization="nf4", optimizer=optimizer)
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    saving = ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=6)
    run = fitted(module, data, tmp_path, max_epochs=2, limit_val_batches=1, callbacks=[saving])
    losses = scalars(tmp_path)["train/loss"]
    assert losses[-1] < losses[0]
    # A matrix of 4096 elements or more (A of down_proj: 32 x 256) has state of one byte per element.
    dtypes = {state["state1"].dtype for state in run.optimizers[0].state.values()}
    assert dtypes == {torch.uint8, torch.float32}
    fitted_from(
        sft_module(tiny_folder, lora=AdapterConfig(r=32), quantization="nf4", optimizer=optimizer),
        data_module(tiny_folder, mixed_data, train_format="sft"),
        tmp_path / "resumed",
        saving.best_model_path,
    )
