"""A callback that sends this process a signal at a known moment."""

import os
import time

from lightning.pytorch.callbacks import Callback


class SignalAt(Callback):
    """Sends `number` at the start of step `step`, to the whole group of processes or to one rank alone."""

    def __init__(self, step: int, number: int, group: bool = False, rank: int = 0, times: int = 1) -> None:
        super().__init__()
        self.step, self.number, self.group, self.rank, self.times = step, number, group, rank, times

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            for _ in range(self.times):
                (os.killpg if self.group else os.kill)(os.getpgrp() if self.group else os.getpid(), self.number)
                time.sleep(0.2)


class SignalAtStart(Callback):
    """Sends `number` while the run is set up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def on_fit_start(self, trainer, pl_module):
        os.kill(os.getpid(), self.number)
        time.sleep(0.1)
