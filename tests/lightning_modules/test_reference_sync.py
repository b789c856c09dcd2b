"""A reference that becomes the policy every few steps."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.functional.policy_loss_types import LossConfig
from lightning_modules.policy.adapters import AdapterConfig
from tests.lightning_modules.module_runs import data_module, grpo_module, scalars, trainer


def train(tiny_folder, mixed_data, folder, *, steps=4, ckpt_path=None, **options):
    module = grpo_module(tiny_folder, loss_config=LossConfig(beta=0.5), **options)
    data = data_module(tiny_folder, mixed_data, train_format="prompts")
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(folder, max_steps=steps, limit_val_batches=0, callbacks=[saving])
    run.fit(module, data, ckpt_path=ckpt_path)
    return scalars(folder)


def test_the_policy_begins_again_at_its_reference(tiny_folder, mixed_data, tmp_path):
    logged = train(tiny_folder, mixed_data, tmp_path, reference_sync_steps=2)
    first, second, third, fourth = logged["train/kl"]
    # Before the first step and after each copy both are one model; a step parts them.
    assert first == pytest.approx(0, abs=1e-9)
    assert second > 1e-6
    assert third == pytest.approx(0, abs=1e-9)
    assert fourth > 1e-6


def test_several_optimizer_steps_of_one_batch_may_jump_over_a_multiple(tiny_folder, mixed_data, tmp_path):
    logged = train(tiny_folder, mixed_data, tmp_path, steps=6, inner_epochs=2, reference_sync_steps=3)
    # Batches end at steps 2, 4 and 6: only the second and the third end at or beyond a new multiple of 3.
    first, second, third = logged["train/kl"]
    assert first == pytest.approx(0, abs=1e-9)
    assert second > 1e-6
    assert third == pytest.approx(0, abs=1e-9)


def test_a_resumed_run_has_the_reference_of_its_checkpoint(tiny_folder, mixed_data, tmp_path):
    whole = train(tiny_folder, mixed_data, tmp_path / "whole", reference_sync_steps=2)
    (checkpoint,) = (tmp_path / "whole").glob("step=3*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert {name.partition(".")[0] for name in saved["state_dict"]} == {"policy"}
    assert {f"policy.{name}" for name in saved["reference"]} <= saved["state_dict"].keys()
    resumed = train(tiny_folder, mixed_data, tmp_path / "rest", ckpt_path=checkpoint, reference_sync_steps=2)
    for tag in ("train/kl", "train/loss", "train/grad_norm"):
        assert resumed[tag] == pytest.approx(whole[tag][3:], rel=1e-5), tag


def test_a_checkpoint_without_a_reference_is_refused(tiny_folder, mixed_data, tmp_path):
    train(tiny_folder, mixed_data, tmp_path / "initial", steps=1)
    (checkpoint,) = (tmp_path / "initial").glob("step=1*.ckpt")
    assert "reference" not in torch.load(checkpoint, weights_only=True)
    with pytest.raises(ValueError, match=r"holds no reference policy.*reference_sync_steps: null"):
        train(tiny_folder, mixed_data, tmp_path / "rest", ckpt_path=checkpoint, reference_sync_steps=2)


def test_a_reference_of_another_model_is_refused(tiny_folder):
    module = grpo_module(tiny_folder, loss_config=LossConfig(beta=0.5), reference_sync_steps=2)
    module.configure_model()
    weights = module.reference.weights()
    first, *_ = weights
    with pytest.raises(ValueError, match=f"another model.*1 weights differ in name or shape, among them {first}"):
        module.on_load_checkpoint({"reference": {**weights, first: torch.zeros(3)}})


def test_no_strategy_and_no_optimizer_can_reach_the_reference(tiny_folder):
    module = grpo_module(tiny_folder, loss_config=LossConfig(beta=0.5), reference_sync_steps=2)
    module.configure_model()
    own = {id(parameter) for parameter in module.parameters()}
    assert own == {id(parameter) for parameter in module.policy.parameters()}
    assert not own & {id(parameter) for parameter in module.reference.policy.parameters()}
    assert not any(module.reference.policy is part for part in module.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference_sync_steps": 0}, "reference_sync_steps is 0; it must be >= 1"),
        ({"reference_sync_steps": 5}, "reference_sync_steps is 5, but model.loss_config.beta is 0"),
        (
            {"reference_sync_steps": 5, "lora": AdapterConfig(r=2), "loss_config": LossConfig(beta=0.1)},
            "reference_sync_steps is 5, but with model.lora the reference is the model without its adapters",
        ),
    ],
)
def test_what_cannot_be_synced_is_refused(tiny_folder, options, message):
    with pytest.raises(ValueError, match=message):
        grpo_module(tiny_folder, **{"loss_config": LossConfig(beta=0.0), **options})
