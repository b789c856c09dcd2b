"""Rollouts on the disk, against what the module held in memory: whole runs, interrupted ones and resumed ones."""

from __future__ import annotations

import re
from pathlib import Path

import lightning.pytorch as pl
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from datamodules.types import EncodedPrompt, VideoRecord
from lightning_modules.callbacks import RolloutStore
from lightning_modules.rollout_log.stored_rows import COLUMNS, as_table, stored_rows
from lightning_modules.rollouts.sample import RolloutSample
from lightning_modules.rollouts.types import Completion, RolloutGroup
from rewards.answer_format import parse_response
from rewards.types import ProblemType, RewardBreakdown
from tests.lightning_modules.module_runs import data_module, grpo_module, trainer


def completion(text: str, logprobs: list[float], *, truncated: bool = False) -> Completion:
    policy = torch.tensor(logprobs)
    return Completion(
        token_ids=torch.zeros(len(logprobs), dtype=torch.int64),
        text=text,
        sampling_logprobs=policy / 2,
        policy_logprobs=policy,
        truncated=truncated,
    )


def one_group(problem_id: str = "7") -> RolloutSample:
    record = VideoRecord(
        problem_id=problem_id,
        problem="Which?",
        options=("A. left", "B. right"),
        data_type="text",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        solution="<answer>A</answer>",
        data_source="made up",
        file=Path("records.jsonl"),
        line=1,
    )
    prompt = EncodedPrompt(record=record, input_ids=torch.zeros(5, dtype=torch.int64), vision=None, frames=None)
    completions = (completion("<answer>A</answer>", [-1.0, -3.0]), completion("B", [-0.5], truncated=True))
    accuracy = torch.tensor([[1.0, 0.0]])
    breakdown = RewardBreakdown(
        total=accuracy * 2, components={"accuracy": accuracy}, contributions={"accuracy": accuracy * 2}, seconds={}
    )
    group = RolloutGroup(prompt=prompt, completions=completions)
    return RolloutSample(groups=[group], breakdown=breakdown, advantages=torch.tensor([[0.5, -0.5]]))


class Sampler(pl.LightningModule):
    """Leaves one group of two completions behind per batch; `problem_id` is the batch's number in this process."""

    def __init__(self, *, steps_per_batch: int = 1, stops_in: int | None = None, error: type = RuntimeError) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.last_rollouts: RolloutSample | None = None
        self.steps_per_batch, self.stops_in, self.error = steps_per_batch, stops_in, error
        self.batches = 0

    def training_step(self, batch, batch_idx):
        if self.batches == self.stops_in:
            raise self.error
        self.batches += 1
        for _ in range(self.steps_per_batch):
            self.manual_backward(self.layer(torch.ones(1)).sum())
            self.optimizers().step()
        self.last_rollouts = one_group(str(self.batches))

    def validation_step(self, batch, batch_idx):
        self.last_rollouts = one_group("validation")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


NUMBERS = DataLoader(torch.zeros(100), batch_size=1)


def fit(folder, store, module=None, *, steps=4, ckpt_path=None, callbacks=(), **options):
    module = module or Sampler()
    options = {"limit_val_batches": 0, "enable_checkpointing": bool(callbacks), **options}
    run = trainer(folder, max_steps=steps, logger=False, callbacks=[store, *callbacks], **options)
    run.fit(module, NUMBERS, NUMBERS, ckpt_path=ckpt_path)
    return module


def names(folder):
    return sorted(path.name for path in (folder / "rollouts").iterdir())


def read(folder):
    """All rows, files in the order of their names."""
    files = sorted((folder / "rollouts").glob("*.parquet"))
    return [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]


def steps_of(folder):
    """The step of every group, in stored order."""
    return [row["step"] for row in read(folder) if row["completion_index"] == 0]


def test_a_row_says_all_about_a_completion():
    first, second = stored_rows(one_group(), step=3, rank=1)
    assert first == {
        "step": 3, "rank": 1, "group": "3-1-0", "problem_id": "7", "problem_type": "multiple choice",
        "data_type": "text", "data_source": "made up", "prompt": "Which?\nA. left\nB. right", "prompt_tokens": 5,
        "solution": "<answer>A</answer>", "completion_index": 0, "completion": "<answer>A</answer>",
        "completion_tokens": 2, "truncated": False, "prediction": "A", "sampling_logprob_mean": -1.0,
        "policy_logprob_mean": -2.0, "policy_logprob_sum": -4.0, "policy_logprob_min": -3.0, "advantage": 0.5,
        "reward": 2.0, "reward/accuracy": 1.0, "contribution/accuracy": 2.0,
    }  # fmt: skip
    assert (second["completion_index"], second["truncated"], second["prediction"]) == (1, True, None)
    assert second["reward"] == second["reward/accuracy"] == 0.0
    assert first.keys() == {*COLUMNS, "reward/accuracy", "contribution/accuracy"}


def test_rows_survive_the_disk_and_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_modules.callbacks.rollout_store.ROWS_PER_ROW_GROUP", 3)
    fit(tmp_path, RolloutStore())
    (path,) = (tmp_path / "rollouts").iterdir()
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [3, 3, 2]
    expected = [row for step in range(1, 5) for row in stored_rows(one_group(str(step)), step=step, rank=0)]
    assert read(tmp_path) == expected
    assert file.schema_arrow.equals(as_table(expected).schema)


def test_a_real_run_stores_what_the_module_held(tiny_folder, mixed_data, tmp_path):
    held = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            held.append((trainer.global_step, pl_module.last_rollouts))

    data = data_module(tiny_folder, mixed_data, train_format="prompts")
    run = trainer(tmp_path, max_steps=3, val_check_interval=1, limit_val_batches=1, callbacks=[RolloutStore(), Watch()])
    run.fit(grpo_module(tiny_folder), data)
    rows = iter(read(tmp_path))
    for step, sample in held:
        for number, group in enumerate(sample.groups):
            for index, answer in enumerate(group.completions):
                row = next(rows)
                assert (row["step"], row["group"], row["completion_index"]) == (step, f"{step}-0-{number}", index)
                assert row["problem_id"] == group.prompt.record.problem_id
                assert (row["completion"], row["truncated"]) == (answer.text, answer.truncated)
                assert row["prediction"] == parse_response(answer.text).answer
                assert row["completion_tokens"] == len(answer.token_ids)
                assert row["policy_logprob_sum"] == pytest.approx(sum(answer.policy_logprobs.tolist()), rel=1e-5)
                assert row["reward"] == sample.breakdown.total[number, index].item()
                assert row["advantage"] == sample.advantages[number, index].item()
                for name in ("letter", "format", "accuracy"):
                    assert row[f"reward/{name}"] == sample.breakdown.components[name][number, index].item()
                    assert row[f"contribution/{name}"] == sample.breakdown.contributions[name][number, index].item()
    assert [step for step, _ in held] == [1, 2, 3]
    assert next(rows, None) is None


def test_a_file_is_written_when_enough_rows_have_gathered(tmp_path):
    # Two rows per step: 3 are reached after the second.
    fit(tmp_path, RolloutStore(rows_per_file=3), steps=5)
    assert names(tmp_path) == [
        "rollouts-step000001-000002-rank0.parquet",
        "rollouts-step000003-000004-rank0.parquet",
        "rollouts-step000005-000005-rank0.parquet",
    ]


@pytest.mark.parametrize(
    ("steps_per_batch", "expected"),
    [
        (1, [3, 6]),
        (2, [4, 6]),  # after the batches: 2, 4, 6; the fourth step passes 3
    ],
)
def test_steps_can_be_left_out(tmp_path, steps_per_batch, expected):
    fit(tmp_path, RolloutStore(every_n_steps=3), Sampler(steps_per_batch=steps_per_batch), steps=6)
    assert steps_of(tmp_path) == expected


def test_rollouts_of_validation_are_not_stored(tmp_path):
    fit(tmp_path, RolloutStore(), steps=3, limit_val_batches=1, val_check_interval=1, num_sanity_val_steps=1)
    assert [row["problem_id"] for row in read(tmp_path)] == ["1", "1", "2", "2", "3", "3"]


@pytest.mark.parametrize(("error", "leaves"), [(KeyboardInterrupt, SystemExit), (RuntimeError, RuntimeError)])
def test_an_interrupted_run_loses_nothing(tmp_path, error, leaves):
    with pytest.raises(leaves):
        fit(tmp_path, RolloutStore(), Sampler(stops_in=3, error=error), steps=9)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_batch_interrupted_after_its_rollouts_is_stored_once(tmp_path):
    class Interrupt(pl.Callback):
        def __init__(self, hook):
            setattr(self, hook, self.interrupt)

        def interrupt(self, trainer, *_):
            if trainer.global_step == 2:
                raise KeyboardInterrupt

    # Before the store has seen the batch, and after.
    for name, order in (("before", slice(None, None, -1)), ("after", slice(None))):
        callbacks = [RolloutStore(), Interrupt("on_train_batch_end")][order]
        run = trainer(tmp_path / name, max_steps=4, logger=False, callbacks=callbacks, enable_checkpointing=False)
        with pytest.raises(SystemExit):
            run.fit(Sampler(), NUMBERS)
        assert steps_of(tmp_path / name) == [1, 2]


def test_an_interrupt_while_a_file_is_written_neither_loses_nor_repeats_rows(tmp_path, monkeypatch):
    replace = Path.replace

    def interrupted_once(self, target):
        replace(self, target)
        monkeypatch.setattr(Path, "replace", replace)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted_once)
    with pytest.raises(SystemExit):
        fit(tmp_path, RolloutStore(rows_per_file=4), steps=9)
    assert steps_of(tmp_path) == [1, 2]


def checkpoints(every):
    return ModelCheckpoint(every_n_train_steps=every, save_top_k=-1, filename="{step}")


def checkpoint(folder, step):
    (path,) = folder.rglob(f"step={step}.ckpt")
    return path


def test_what_a_checkpoint_contains_is_on_the_disk_with_it(tmp_path):
    class Look(ModelCheckpoint):
        def _save_checkpoint(self, trainer, filepath):
            super()._save_checkpoint(trainer, filepath)
            seen.append((trainer.global_step, steps_of(tmp_path)))

    seen = []
    fit(tmp_path, RolloutStore(), steps=4, callbacks=[Look(every_n_train_steps=2, save_top_k=-1)])
    assert seen == [(2, [1, 2]), (4, [1, 2, 3, 4])]


def test_a_checkpoint_saved_before_the_store_saw_the_batch_contains_it_once(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / "now.ckpt")
            seen.append(steps_of(tmp_path))

    seen = []
    callbacks = [Save(), RolloutStore()]
    run = trainer(tmp_path, max_steps=3, logger=False, callbacks=callbacks, limit_val_batches=0)
    run.fit(Sampler(), NUMBERS)
    assert seen == [[1], [1, 2], [1, 2, 3]]
    assert steps_of(tmp_path) == [1, 2, 3]


def test_an_interrupted_and_resumed_run_stores_what_an_uninterrupted_one_does(tiny_folder, mixed_data, tmp_path):
    def run(folder, *, steps, callbacks=(), **fit_options):
        data = data_module(tiny_folder, mixed_data, train_format="prompts")
        callbacks = [RolloutStore(), checkpoints(2), *callbacks]
        options = {"logger": False, "callbacks": callbacks, "limit_val_batches": 0}
        trainer(folder, max_steps=steps, **options).fit(grpo_module(tiny_folder), data, **fit_options)

    class InterruptAfterThree(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    run(tmp_path / "whole", steps=4)
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", steps=4, callbacks=[InterruptAfterThree()])
    assert {row["step"] for row in read(tmp_path / "parts")} == {1, 2, 3}
    run(tmp_path / "parts", steps=4, ckpt_path=checkpoint(tmp_path / "parts", 2))
    assert read(tmp_path / "parts") == read(tmp_path / "whole")
    assert steps_of(tmp_path / "parts") == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4


def test_a_resumed_run_repeats_no_step_and_keeps_what_it_replaces(tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path, RolloutStore(), Sampler(stops_in=5, error=KeyboardInterrupt), callbacks=[checkpoints(2)], steps=8)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]

    fit(tmp_path, RolloutStore(), callbacks=[checkpoints(2)], ckpt_path=checkpoint(tmp_path, 2), steps=6)

    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    # The new process counts its batches from 1 again.
    assert [row["problem_id"] for row in read(tmp_path)[::2]] == ["1", "2", "1", "2", "3", "4"]
    aside = [name for name in names(tmp_path) if not name.endswith(".parquet")]
    assert aside == [
        "rollouts-step000003-000004-rank0.parquet.superseded1",
        "rollouts-step000005-000005-rank0.parquet.superseded1",
    ]


def test_a_file_with_steps_on_both_sides_of_the_checkpoint_keeps_those_before(tmp_path):
    fit(tmp_path / "run", RolloutStore(output=str(tmp_path / "rollouts")), steps=2, callbacks=[checkpoints(2)])
    for path in (tmp_path / "rollouts").iterdir():
        path.unlink()
    fit(tmp_path, RolloutStore(), steps=5)
    assert names(tmp_path) == ["rollouts-step000001-000005-rank0.parquet"]

    fit(tmp_path, RolloutStore(), steps=4, ckpt_path=checkpoint(tmp_path / "run", 2))

    assert names(tmp_path) == [
        "rollouts-step000001-000002-rank0.parquet",
        "rollouts-step000001-000005-rank0.parquet.superseded1",
        "rollouts-step000003-000004-rank0.parquet",
    ]
    assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_a_fresh_run_does_not_mix_with_an_earlier_one(tmp_path):
    for _ in range(3):
        fit(tmp_path, RolloutStore(), steps=2)
    assert steps_of(tmp_path) == [1, 2]
    name = "rollouts-step000001-000002-rank0.parquet"
    assert names(tmp_path) == [name, f"{name}.superseded1", f"{name}.superseded2"]


def test_files_of_ranks_that_are_gone_are_set_aside_too(tmp_path):
    fit(tmp_path, RolloutStore(), steps=2)
    (tmp_path / "rollouts" / names(tmp_path)[0]).rename(tmp_path / "rollouts/rollouts-step000001-000002-rank3.parquet")
    (tmp_path / "rollouts" / "mine.parquet").write_bytes(b"not ours")
    fit(tmp_path, RolloutStore(), steps=1)
    assert names(tmp_path) == [
        "mine.parquet",
        "rollouts-step000001-000001-rank0.parquet",
        "rollouts-step000001-000002-rank3.parquet.superseded1",
    ]


def test_fast_dev_run_stores_nothing(tmp_path):
    fit(tmp_path, RolloutStore(), fast_dev_run=True)
    assert not (tmp_path / "rollouts").exists()


def test_a_run_that_stores_nothing_says_so(tmp_path):
    with pytest.warns(UserWarning, match=re.escape("every_n_steps (10)")):
        fit(tmp_path, RolloutStore(every_n_steps=10), steps=2)


def test_mistakes_are_found_before_training(tmp_path):
    for options, message in (
        ({"rows_per_file": 0}, "rows_per_file is 0"),
        ({"every_n_steps": 0}, "every_n_steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            RolloutStore(**options)
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        fit(tmp_path, RolloutStore(output=str(tmp_path / "taken")))
    plain = Sampler()
    del plain.last_rollouts
    with pytest.raises(ValueError, match="Sampler has none"):
        fit(tmp_path, RolloutStore(), plain)
