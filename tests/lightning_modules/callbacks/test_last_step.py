"""`last.ckpt` is the last step: at the end, and after an error, from where it resumes as if there were none."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from tests.lightning_modules.module_runs import data_module, grpo_module, sft_module, trainer


class Fail(Callback):
    def __init__(self, hook, batch):
        self.batch = batch
        setattr(self, hook, self.fail)
        self.seen = 0

    def fail(self, *_):
        self.seen += 1
        if self.seen == self.batch:
            raise RuntimeError("the disk went away")


def fit(model, data, folder, *, stage="sft", callbacks=(), resume=None, every=4, **options):
    """12 records in batches of 4: 3 batches an epoch."""
    records = data_module(model, data, train_format="sft" if stage == "sft" else "prompts", val_files=None)
    saving = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=every, save_last=True)
    module = sft_module(model) if stage == "sft" else grpo_module(model)
    options = {"logger": False, "callbacks": [*callbacks, saving], **options}
    trainer(folder, **options).fit(module, records, ckpt_path=resume)
    return module.policy.model.state_dict()


def saved(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("limit", [{"max_steps": 5}, {"max_epochs": 2}], ids=["max_steps", "max_epochs"])
def test_the_end_is_saved_and_continues_as_if_there_had_been_none(tiny_folder, mixed_data, tmp_path, limit):
    fit(tiny_folder, mixed_data, tmp_path / "parts", **limit)
    assert saved(tmp_path / "parts")["global_step"] == (5 if "max_steps" in limit else 6)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    resumed = fit(tiny_folder, mixed_data, tmp_path / "parts", max_steps=8, max_epochs=3, resume=last)
    whole = fit(tiny_folder, mixed_data, tmp_path / "whole", max_steps=8, max_epochs=3)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("stage", "hook", "batch", "accumulate", "step"),
    [
        ("sft", "on_train_batch_start", 6, 1, 5),  # the sixth batch has come and is not done
        ("sft", "on_before_optimizer_step", 3, 2, 2),  # 2 steps an epoch: of batches 1 and 2, and of 3
        ("sft", "on_train_batch_start", 5, 2, 2),  # half of a step is gathered
        ("grpo", "on_before_optimizer_step", 3, 1, 2),
    ],
)
def test_an_error_leaves_the_last_whole_step(tiny_folder, mixed_data, tmp_path, stage, hook, batch, accumulate, step):
    options = {"stage": stage, "accumulate_grad_batches": accumulate, "max_steps": step + 2, "every": 100}
    with pytest.raises(RuntimeError, match="the disk went away"):
        fit(tiny_folder, mixed_data, tmp_path / "parts", callbacks=[Fail(hook, batch)], **options)
    assert saved(tmp_path / "parts")["global_step"] == step
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    resumed = fit(tiny_folder, mixed_data, tmp_path / "parts", resume=last, **options)
    whole = fit(tiny_folder, mixed_data, tmp_path / "whole", **options)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_an_error_between_two_optimizer_steps_of_a_batch_saves_nothing(tiny_folder, mixed_data, tmp_path):
    class FailInTheThirdBatch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 5:  # two steps a batch: the weights are those of neither end
                raise RuntimeError("the disk went away")

    records = data_module(tiny_folder, mixed_data, train_format="prompts", val_files=None)
    saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=4, save_last=True)
    run = trainer(tmp_path, logger=False, callbacks=[FailInTheThirdBatch(), saving], max_steps=12)
    said = r"last\.ckpt holds step 4; the steps from there to 5 are not saved"
    with pytest.warns(UserWarning, match=said), pytest.raises(RuntimeError, match="the disk went away"):
        run.fit(grpo_module(tiny_folder, inner_epochs=2), records)
    assert saved(tmp_path)["global_step"] == 4


def test_a_stop_by_a_metric_is_the_last_step(tiny_folder, mixed_data, tmp_path):
    records = data_module(tiny_folder, mixed_data, train_format="sft")
    saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_last=True)
    stopping = EarlyStopping("val/accuracy", patience=1, mode="max")  # never better than at the first
    options = {"logger": False, "callbacks": [stopping, saving], "max_steps": 9, "val_check_interval": 1}
    run = trainer(tmp_path, **options, limit_val_batches=1)
    run.fit(sft_module(tiny_folder), records)
    assert run.global_step < 9
    assert saved(tmp_path)["global_step"] == run.global_step
