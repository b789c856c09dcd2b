"""Gradients of the optimizer steps of a fine-tuning epoch: Lightning's, and those of one batch without Lightning.

Started by torchrun it writes the former of several ranks to a file.
"""

import argparse
import os
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from datamodules.collate import SFTCollator
from lightning_modules.sft_module import SFTModule
from lightning_modules.training.optim import OptimizerConfig
from lightning_modules.training.strategies import FSDP2Strategy
from tests.lightning_modules.module_runs import data_module, scalars, trainer

STILL = OptimizerConfig(learning_rate=1e-30, schedule="constant")  # every step starts at the same weights


class RecordingModule(SFTModule):
    """Keeps the gradients that clipping and the optimizer see."""

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        gradients = {name: parameter.grad for name, parameter in self.policy.named_parameters()}
        whole = {
            name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in gradients.items()
        }
        self.recorded = [*getattr(self, "recorded", []), {name: value.clone() for name, value in whole.items()}]


def lightning_steps(model, data, folder, *, batch_size, accumulate, ranks=1, strategy="auto"):
    """(losses as logged, gradients) of the steps of one epoch in file order, in float64."""
    module = RecordingModule(model_name_or_path=str(model), dtype="float64", optimizer=STILL)
    loader = data_module(model, data, train_format="sft", batch_size=batch_size, shuffle=False)
    trainer(
        folder,
        devices=ranks,
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        max_epochs=1,
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False,
    ).fit(module, loader)
    return scalars(folder)["train/loss"], module.recorded


def expected_steps(model, data, windows):
    """The same from the definition: sum over all labeled tokens of a step / their number, one record at a time."""
    module = RecordingModule(model_name_or_path=str(model), dtype="float64")
    module.configure_model()
    policy, loader = module.policy, data_module(model, data, train_format="sft")
    loader.setup("fit")
    dataset = loader._dataset("fit", loader.train_frames, with_targets=True)
    collate = SFTCollator(pad_token_id=loader.tokenizer.pad_token_id)
    losses, gradients = [], []
    for window in windows:
        policy.zero_grad()
        logprobs = [
            policy.target_statistics(policy.with_positions(collate([dataset[index]]))).logprobs for index in window
        ]
        loss = -torch.cat(logprobs).mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: parameter.grad.clone() for name, parameter in policy.named_parameters()})
    return losses, gradients


def assert_same_steps(actual, expected):
    torch.testing.assert_close(torch.tensor(actual[0]), torch.tensor(expected[0]), rtol=1e-6, atol=0)
    assert len(actual[1]) == len(expected[1])
    for found, right in zip(actual[1], expected[1], strict=True):
        assert found.keys() == right.keys()
        scale = torch.nn.utils.get_total_norm(list(right.values()))
        for name in right:  # norms and positions are computed in float32 on float64 weights too
            assert (found[name] - right[name]).norm() < 1e-5 * right[name].norm() + 1e-6 * scale, name


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    for place in ("model", "data", "folder"):
        parser.add_argument(place, type=Path)
    parser.add_argument("--strategy")
    given = parser.parse_args()
    ranks = int(os.environ["WORLD_SIZE"])
    steps = lightning_steps(
        given.model, given.data, given.folder, batch_size=1, accumulate=4, ranks=ranks, strategy=given.strategy
    )
    if os.environ["RANK"] == "0":
        torch.save(steps, given.folder / "steps.pt")
