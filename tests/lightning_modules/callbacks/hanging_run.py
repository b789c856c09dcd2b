"""A GRPO run whose reward, in the second step of one rank, never returns, holds the interpreter or fails."""

import argparse
import ctypes
import os
import sys
import time
from pathlib import Path

import torch

from lightning_modules.callbacks import Watchdog, watchdog
from tests.lightning_modules.module_runs import LetterReward, data_module, grpo_module, trainer
from tests.lightning_modules.two_ranks import strategy_of


class HangingReward(LetterReward):
    def __init__(self, hang, rank, groups):
        super().__init__()
        self.hang, self.rank, self.left = hang, rank, groups

    def score(self, group, raw):
        self.left -= 1
        if self.left < 0 and self.rank == int(os.environ.get("RANK", "0")):
            if self.hang == "raise":
                raise RuntimeError("the judge is out of order")
            if self.hang == "holding":
                ctypes.PyDLL(None).sleep(1000)
            time.sleep(1000)
        return super().score(group, raw)


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("hang", choices=("reward", "holding", "raise"))
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--leaving", type=float, default=watchdog.LEAVING_SECONDS)
    given = parser.parse_args(arguments)
    watchdog.LEAVING_SECONDS = given.leaving
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    data = data_module(given.model, given.data, train_format="prompts", batch_size=2, val_files=None)
    module = grpo_module(given.model, rewards=[HangingReward(given.hang, given.rank, groups=2)])
    options = {"devices": ranks, "strategy": strategy_of(given.strategy), "callbacks": [Watchdog(given.seconds)]}
    trainer(given.output, max_steps=3, **options).fit(module, data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
