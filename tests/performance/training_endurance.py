"""What 300 steps of training leave behind: memory, file descriptors, threads and processes, of a tiny model on the CPU.

    python tests/performance/training_endurance.py [--steps 300]

Loader workers with their reader processes, TensorBoard and a checkpoint after every epoch of three steps are part of
it. Memory is the resident size of the trainer, and of all processes below it together.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lightning_modules.policy.tiny import write_tiny_model
from tests.datamodules.synthetic.mixed_dataset import write_mixed_dataset
from tests.lightning_modules.module_runs import data_module, grpo_module, sft_module, trainer

KINDS = ("sft", "grpo")
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the trainer and the processes below it hold after a step."""

    step: int
    trainer_mib: float
    children_mib: float
    descriptors: int
    """The fewest after any step since the last observation: tensors of a batch that is ready early come with some."""
    threads: int
    children: int


def resources(step: int, descriptors: int) -> Resources:
    own = os.getpid()
    below = list(descendants(own))
    return Resources(
        step=step,
        trainer_mib=resident(own) / MIB,
        children_mib=sum(map(resident, below)) / MIB,
        descriptors=descriptors,
        threads=len(list(Path("/proc/self/task").iterdir())),
        children=len(below),
    )


def descendants(process: int) -> Iterator[int]:
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from descendants(child)


def resident(process: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Observer(Callback):
    """Notes the resources after each of `at` steps."""

    def __init__(self, at: set[int]) -> None:
        self.at = at
        self.seen: list[Resources] = []
        self._descriptors: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: object) -> None:
        self._descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
        if trainer.global_step in self.at:
            self.seen.append(resources(trainer.global_step, min(self._descriptors)))
            self._descriptors.clear()


def endure(kind: str, folder: Path, steps: int) -> list[Resources]:
    """Train `steps` steps and observe them at a sixth, a third, and so on."""
    model = write_tiny_model(folder / "model", seed=0)
    data = write_mixed_dataset(folder / "data", seed=0, count=12)
    module = {"sft": sft_module, "grpo": grpo_module}[kind](model)
    train_format = {"sft": "sft", "grpo": "prompts"}[kind]
    loader = data_module(model, data, train_format=train_format, num_workers=2)
    observer = Observer({steps * sixth // 6 for sixth in range(1, 7)})
    trainer(folder / "run", max_steps=steps, limit_val_batches=0, callbacks=[observer]).fit(module, loader)
    return observer.seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for kind in KINDS:
        print(f"\n{kind}\n\n| " + " | ".join(field.name.replace("_", " ") for field in fields(Resources)) + " |")
        print("|---" * len(fields(Resources)) + "|")
        with tempfile.TemporaryDirectory() as temporary:
            for seen in endure(kind, Path(temporary), steps):
                print("| " + " | ".join(f"{value:.0f}" for value in astuple(seen)) + " |", flush=True)


if __name__ == "__main__":
    main()
