"""Whole runs and resumed runs, many in one start of torchrun; the tests compare what they left."""

import json
import os
import sys
from pathlib import Path

import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_modules.callbacks import HFExport
from lightning_modules.training.strategies import FSDP2Strategy
from tests.lightning_modules.module_runs import data_module, grpo_module, sft_module, trainer

GLOBAL_BATCH = 4
LIMITS = {
    "max_steps": {"max_steps": 6},
    "max_epochs": {"max_epochs": 2},
    "both": {"max_steps": 5, "max_epochs": 2},
}
"""12 records in batches of 4: 3 steps an epoch."""


class Witness(Callback):
    """Writes which records every step of all ranks was trained on."""

    def __init__(self, path):
        self.path = path
        self.steps = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        # An optimizer step that was repeated or left out shows in the number, the wrong records in the names.
        records = batch.records if hasattr(batch, "records") else [prompt.record for prompt in batch.prompts]
        self.steps[trainer.global_step + 1] = [record.problem_id for record in records]

    def on_train_end(self, trainer, pl_module):
        (self.path / f"rank{trainer.global_rank}.json").write_text(json.dumps(self.steps))


def run(
    model,
    data,
    folder,
    *,
    stage,
    limit="max_epochs",
    workers=0,
    strategy="fsdp2",
    folders=False,
    max_bad_fraction=None,
    resume=None,
):
    """One fit; `folder` then holds the checkpoints, the records of every step and the exported model.

    With `max_bad_fraction`, bad media are quarantined, records come in file order, and there are logs.
    """
    ranks = int(os.environ["WORLD_SIZE"])
    seed_everything(0, verbose=False)
    folder.mkdir(parents=True, exist_ok=True)
    sft, options, logs = stage == "sft", {}, {"logger": False}
    if max_bad_fraction is not None:
        options = {"on_bad_media": "quarantine", "max_bad_fraction": max_bad_fraction, "shuffle": False}
        logs = {}
    records = data_module(
        model,
        data,
        train_format="sft" if sft else "prompts",
        batch_size=GLOBAL_BATCH // ranks,
        num_workers=workers,
        val_files=None,
        **options,
    )
    fitting = trainer(
        folder,
        devices=ranks,
        strategy=FSDP2Strategy(save_distributed_checkpoint=folders) if strategy == "fsdp2" else strategy,
        **logs,
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
            Witness(folder),
            HFExport(str(folder / "model")),
        ],
        gradient_clip_val=1.0 if sft else None,
        **LIMITS[limit],
    )
    module = sft_module(model) if sft else grpo_module(model, advantage_scale="batch")
    fitting.fit(module, records, ckpt_path=resume)


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, data, plan = map(Path, sys.argv[1:])
    for given in json.loads(plan.read_text()):
        run(model, data, Path(given.pop("folder")), **given)
