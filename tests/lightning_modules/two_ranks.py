"""Module runs of the tests, in one process or, started by torchrun, on as many gloo processes as it was given."""

import argparse
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.callbacks import HFExport
from lightning_modules.functional.policy_loss_types import LossConfig
from lightning_modules.policy.adapters import AdapterConfig
from lightning_modules.policy.policy import Policy
from lightning_modules.training.nonfinite import GuardConfig
from lightning_modules.training.precision import trainer_options
from lightning_modules.training.strategies import FSDP2Strategy
from tests.lightning_modules.module_runs import data_module, grpo_module, sft_module, trainer
from tests.lightning_modules.poison import PoisonedReward, poisoned_targets


def parse(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--stage", default="grpo", choices=("sft", "grpo"))
    kinds = ("fsdp2", "fsdp2_folders", "fsdp2_offload", "fsdp2_every", "fsdp2_once")
    parser.add_argument("--strategy", default="auto", choices=("auto", "ddp", *kinds))
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--loss", default="grpo")
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--sync", type=int, help="reference_sync_steps")
    parser.add_argument("--slices", type=int, help="micro_batch_completions")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--quantization")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--freeze", nargs="*", default=[])
    parser.add_argument("--resume", help="checkpoint")
    parser.add_argument("--in_file_order", action="store_true")
    parser.add_argument("--poisoned", help="problem_id of a record with a fault that is not finite")
    parser.add_argument("--on_nonfinite", default="stop")
    return parser.parse_args(list(map(str, arguments)))


def strategy_of(name):
    if not name.startswith("fsdp2"):
        return name
    return FSDP2Strategy(
        save_distributed_checkpoint=name.endswith("folders"),
        cpu_offload=name.endswith("offload"),
        reduce_every_backward=name.endswith("every"),
        gather_once=name.endswith("once"),
    )


def module_of(given):
    guard = GuardConfig(on_nonfinite=given.on_nonfinite)
    if given.stage == "sft":
        return sft_module(given.model, freeze=given.freeze, dtype=given.dtype, guard=guard)
    settings = LossConfig(beta=given.beta)
    options = {"loss": given.loss, "loss_config": settings, "freeze": given.freeze}
    options |= {"reference_sync_steps": given.sync, "lora": AdapterConfig(r=4) if given.lora else None}
    options |= {"quantization": given.quantization, "dtype": given.dtype}
    options["micro_batch_completions"] = given.slices
    options |= {"rewards": [PoisonedReward(given.poisoned)]} if given.poisoned is not None else {}
    return grpo_module(given.model, micro_batch_groups=1, advantage_scale="batch", guard=guard, **options)


def run(given):
    seed_everything(0, verbose=False)  # adapters begin at random
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    sft = given.stage == "sft"
    data = data_module(
        given.model,
        given.data,
        train_format="sft" if sft else "prompts",
        batch_size=4 // ranks // given.accumulate,
        shuffle=not given.in_file_order,
    )
    callbacks = [
        ModelCheckpoint(given.output, filename="{step}", every_n_train_steps=2, save_top_k=-1),
        HFExport(str(given.output / "model")),
    ]
    fitting = trainer(
        given.output,
        **trainer_options({"precision": given.precision}),
        devices=ranks,
        strategy=strategy_of(given.strategy),
        max_steps=given.steps,
        limit_val_batches=1.0,
        callbacks=callbacks,
        gradient_clip_val=1.0 if sft else None,
        accumulate_grad_batches=given.accumulate,
    )
    module = module_of(given)
    with patch.object(Policy, "target_statistics", poisoned_targets(given.poisoned)):  # not beyond: it may be pytest's
        fitting.fit(module, data, ckpt_path=given.resume)
    optimizer = fitting.optimizers[0]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(parameter in optimizer.state for parameter in trained), "a parameter never had a gradient"


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(parse(sys.argv[1:]))
