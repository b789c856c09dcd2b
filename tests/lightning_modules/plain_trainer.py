"""Which records a plain Trainer, as anybody would write it, visits on this rank; started by torchrun."""

import json
import sys
from pathlib import Path

import lightning as L
import torch

from tests.lightning_modules.module_runs import data_module


class Witness(L.LightningModule):
    """Trains nothing that matters."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = {"fit": [], "validate": [], "predict": []}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def see(self, stage, batch):
        self.seen[stage] += [prompt.record.problem_id for prompt in batch.prompts]

    def training_step(self, batch, batch_idx):
        self.see("fit", batch)
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch, batch_idx):
        self.see("validate", batch)

    def predict_step(self, batch, batch_idx):
        self.see("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


if __name__ == "__main__":
    model, data, output = map(Path, sys.argv[1:])
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", strategy="ddp", devices=2, num_sanity_val_steps=0, **options)
    records = data_module(
        model, data, train_format="prompts", predict_files=[str(data)], batch_size=2, eval_batch_size=1
    )
    witness = Witness()
    trainer.fit(witness, records)
    trainer.predict(witness, records)
    (output / f"rank{trainer.global_rank}.json").write_text(json.dumps(witness.seen))
