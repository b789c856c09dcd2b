"""Started by torchrun: the module runs of the tests on as many gloo processes as it was given."""

import os
import sys
from pathlib import Path

import torch

from tests.lightning_modules.module_runs import data_module, grpo_module, trainer


def main(model: str, data: str, output: str, loss: str) -> None:
    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    module = grpo_module(Path(model), loss=loss, micro_batch_groups=1, advantage_scale="batch")
    loader = data_module(Path(model), Path(data), train_format="prompts", batch_size=4 // ranks)
    strategy = "ddp" if ranks > 1 else "auto"
    trainer(Path(output), devices=ranks, strategy=strategy, max_steps=3, limit_val_batches=1.0).fit(module, loader)


if __name__ == "__main__":
    main(*sys.argv[1:])
