"""What TensorBoard shows of a run that was killed before its first checkpoint."""

from __future__ import annotations

from lightning_modules.callbacks import ContinuedRun
from lightning_modules.pictures.curves import read_scalars
from tests.lightning_modules.module_runs import data_module, sft_module, trainer


def test_a_run_without_a_checkpoint_begins_its_line_anew(tiny_folder, mixed_data, tmp_path):
    options = {"enable_checkpointing": False, "limit_val_batches": 0, "callbacks": [ContinuedRun()]}
    for steps in (2, 3):  # the first leaves what a start that is killed after two steps does
        data = data_module(tiny_folder, mixed_data, train_format="sft")
        trainer(tmp_path, max_steps=steps, **options).fit(sft_module(tiny_folder), data)
        assert [step for step, _ in read_scalars(tmp_path / "logs")["train/loss"]] == list(range(steps))
