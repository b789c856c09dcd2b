"""Which step a decaying learning rate ends at."""

import math

import pytest

from lightning_modules.training.optim import OptimizerConfig
from tests.lightning_modules.module_runs import data_module, grpo_module, scalars, sft_module, trainer


def rates(folder, model, data, horizon, *, make=sft_module, train_format="sft", options=None, **limits):
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="cosine", schedule_horizon=horizon)
    module = make(model, optimizer=optimizer, **(options or {}))
    loader = data_module(model, data, train_format=train_format, batch_size=2)
    trainer(folder, limit_val_batches=0, **limits).fit(module, loader)
    return [rate * 1e3 for rate in scalars(folder)["train/lr"]]


def cosine(step, of):
    return 0.5 * (1 + math.cos(math.pi * step / of))


# 12 records in batches of 2 are 6 batches an epoch.
@pytest.mark.parametrize(("horizon", "last"), [("training", 3), ("epochs", 12)])
def test_the_schedule_ends_with_the_training_or_with_the_epochs(tiny_folder, mixed_data, tmp_path, horizon, last):
    logged = rates(tmp_path, tiny_folder, mixed_data, horizon, max_steps=3, max_epochs=2)
    assert logged == pytest.approx([cosine(step, last) for step in (1, 2, 3)], abs=1e-6)


def test_accumulated_batches_make_one_step(tiny_folder, mixed_data, tmp_path):
    # 6 batches in fours are 2 steps, the second of two batches.
    options = {"max_steps": 1, "max_epochs": 3, "accumulate_grad_batches": 4}
    logged = rates(tmp_path, tiny_folder, mixed_data, "epochs", **options)
    assert logged[-1] == pytest.approx(cosine(1, 6), abs=1e-6)


def test_inner_epochs_are_steps_too(tiny_folder, mixed_data, tmp_path):
    grpo = {"make": grpo_module, "train_format": "prompts", "options": {"inner_epochs": 2}}
    logged = rates(tmp_path, tiny_folder, mixed_data, "epochs", max_steps=4, max_epochs=1, **grpo)
    assert logged == pytest.approx([cosine(step, 12) for step in (0, 2)], abs=1e-6)  # the first step of each rollout


def test_an_epoch_horizon_needs_epochs(tiny_folder, mixed_data, tmp_path):
    with pytest.raises(ValueError, match=r"schedule_horizon: epochs there is none; set trainer\.max_epochs"):
        rates(tmp_path, tiny_folder, mixed_data, "epochs", max_steps=3)


def test_an_unknown_horizon_is_refused():
    with pytest.raises(ValueError, match="schedule_horizon is 'epoch'; allowed are 'training', 'epochs'"):
        OptimizerConfig(schedule_horizon="epoch")
