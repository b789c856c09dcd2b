"""Predictions on the disk: complete, in record order, and never half a file under the final name."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules.callbacks import PredictionWriter


class Answerer(pl.LightningModule):
    """Answers record n with n squared; batches are tensors of record numbers."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.layer = torch.nn.Linear(1, 1)

    def predict_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> list[dict] | None:
        if batch_idx == self.fails_at:
            raise RuntimeError("the machine went away")
        return [{"problem_id": f"{dataloader_idx}-{int(n)}", "output": int(n) ** 2} for n in batch]

    validation_step = predict_step
    test_step = predict_step

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def quiet_trainer(callback: PredictionWriter, tmp_path: Path, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **arguments,
    )


def numbers(count: int) -> DataLoader:
    return DataLoader(torch.arange(count), batch_size=2)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def process(rank: int, world_size: int = 2) -> Any:
    """What the callback reads of a trainer in one of several processes."""
    return SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        is_global_zero=rank == 0,
        sanity_checking=False,
        fast_dev_run=False,
        strategy=SimpleNamespace(barrier=lambda name: None),
    )


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_rows_of_every_batch_are_written_in_order(tmp_path: Path, stage: str):
    output = tmp_path / "deep" / "rows.jsonl"
    getattr(quiet_trainer(PredictionWriter(str(output)), tmp_path), stage)(Answerer(), numbers(5))
    assert rows(output) == [{"problem_id": f"0-{n}", "output": n * n} for n in range(5)]
    assert [path.name for path in output.parent.iterdir()] == ["rows.jsonl"]


def test_dataloaders_follow_each_other(tmp_path: Path):
    output = tmp_path / "rows.jsonl"
    quiet_trainer(PredictionWriter(str(output)), tmp_path).predict(Answerer(), [numbers(3), numbers(1)])
    assert [row["problem_id"] for row in rows(output)] == ["0-0", "0-1", "0-2", "1-0"]


def test_failed_run_leaves_finished_batches_and_the_former_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    output = tmp_path / "rows.jsonl"
    output.write_text("former\n")
    with caplog.at_level("INFO"), pytest.raises(RuntimeError, match="went away"):
        quiet_trainer(PredictionWriter(str(output)), tmp_path).predict(Answerer(fails_at=2), numbers(6))
    assert output.read_text() == "former\n"
    # Batches 0 and 1 of two records each.
    assert [line["row"]["output"] for line in rows(tmp_path / "rows.rank0.partial.jsonl")] == [0, 1, 4, 9]
    assert "rows.rank0.partial.jsonl" in caplog.text


def test_batch_is_on_the_disk_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen, synced = [], []
    monkeypatch.setattr("os.fsync", synced.append)

    class Watcher(Answerer):
        def predict_step(self, batch: torch.Tensor, batch_idx: int) -> list[dict]:
            seen.append((len(rows(tmp_path / "rows.rank0.partial.jsonl")), len(synced)))
            return super().predict_step(batch, batch_idx)

    quiet_trainer(PredictionWriter(str(tmp_path / "rows.jsonl")), tmp_path).predict(Watcher(), numbers(6))
    # (rows readable, files synced) before each batch of two.
    assert seen == [(0, 0), (2, 1), (4, 2)]


def test_validation_of_a_fit_is_written_but_not_its_sanity_check(tmp_path: Path):
    output = tmp_path / "rows.jsonl"
    written_before_training = []

    class Watcher(Answerer):
        def on_train_start(self) -> None:
            written_before_training.extend(tmp_path.iterdir())

    trainer = quiet_trainer(PredictionWriter(str(output)), tmp_path, num_sanity_val_steps=2, log_every_n_steps=1)
    trainer.fit(Watcher(), numbers(2), numbers(3))
    assert written_before_training == []
    assert [row["output"] for row in rows(output)] == [0, 1, 4]


def test_fast_dev_run_keeps_the_former_file(tmp_path: Path):
    output = tmp_path / "rows.jsonl"
    output.write_text("former\n")
    quiet_trainer(PredictionWriter(str(output)), tmp_path, fast_dev_run=True).predict(Answerer(), numbers(4))
    assert output.read_text() == "former\n"


@pytest.mark.parametrize("outputs", [torch.ones(1), {"problem_id": 1}, [{"output": 1}], [1]])
def test_other_outputs_of_a_step_are_refused(tmp_path: Path, outputs: Any):
    writer = PredictionWriter(str(tmp_path / "rows.jsonl"))
    trainer = process(0, world_size=1)
    writer.on_predict_epoch_start(trainer, None)
    with pytest.raises(ValueError, match="list of dicts with a problem_id"):
        writer.on_predict_batch_end(trainer, None, outputs, None, 0)


@pytest.mark.parametrize("value", [float("nan"), torch.ones(1), {1, 2}])
def test_values_that_are_not_json_name_the_record(tmp_path: Path, value: Any):
    writer = PredictionWriter(str(tmp_path / "rows.jsonl"))
    trainer = process(0, world_size=1)
    writer.on_test_epoch_start(trainer, None)
    with pytest.raises(ValueError, match="problem_id q7 is not plain JSON"):
        writer.on_test_batch_end(trainer, None, [{"problem_id": "q7", "reward": value}], None, 0)


def test_none_writes_nothing_and_other_scripts_are_kept(tmp_path: Path):
    output = tmp_path / "rows.jsonl"
    writer, trainer = PredictionWriter(str(output)), process(0, world_size=1)
    writer.on_validation_epoch_start(trainer, None)
    writer.on_validation_batch_end(trainer, None, None, None, 0)
    writer.on_validation_batch_end(trainer, None, [{"problem_id": 1, "output": "日本\n\u2028"}], None, 1)
    writer.on_validation_epoch_end(trainer, None)
    text = output.read_text(encoding="utf-8")
    assert text.count("\n") == 1
    assert "日本" in text
    assert json.loads(text)["output"] == "日本\n\u2028"


def write_parts(output: Path, batches: dict[int, list[list[tuple[int, str]]]]) -> None:
    """Each rank's batches of (dataloader, problem_id); rank 0 ends last, as after a barrier."""
    for rank in sorted(batches, reverse=True):
        writer, trainer = PredictionWriter(str(output)), process(rank, len(batches))
        writer.on_predict_epoch_start(trainer, None)
        place: dict[int, int] = {}
        for batch in batches[rank]:
            dataloader = batch[0][0]
            number = place.setdefault(dataloader, 0)
            place[dataloader] += 1
            ids = [{"problem_id": problem_id, "rank": rank} for _, problem_id in batch]
            writer.on_predict_batch_end(trainer, None, ids, None, number, dataloader)
        writer.on_predict_epoch_end(trainer, None)


def test_ranks_are_merged_into_record_order(tmp_path: Path):
    output = tmp_path / "rows.jsonl"
    # Record i goes to rank i mod 2, in batches of two: rank 0 gets 0 2 | 4 6 | 8, rank 1 gets 1 3 | 5 7.
    # The second dataloader has two records.
    write_parts(
        output,
        {
            0: [[(0, "a0"), (0, "a2")], [(0, "a4"), (0, "a6")], [(0, "a8")], [(1, "b0")]],
            1: [[(0, "a1"), (0, "a3")], [(0, "a5"), (0, "a7")], [(1, "b1")]],
        },
    )
    assert [row["problem_id"] for row in rows(output)] == [f"a{n}" for n in range(9)] + ["b0", "b1"]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_records_repeated_to_fill_up_ranks_count_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    output = tmp_path / "rows.jsonl"
    # Five records on two ranks: the sampler repeats record 0 on rank 1. Rank 0 answered record 2 twice on purpose.
    with caplog.at_level("INFO"):
        write_parts(
            output,
            {0: [[(0, "0"), (0, "2"), (0, "2"), (0, "4")]], 1: [[(0, "1"), (0, "3"), (0, "0")]]},
        )
    assert sorted((row["problem_id"], row["rank"]) for row in rows(output)) == [
        ("0", 0),
        ("1", 1),
        ("2", 0),
        ("2", 0),
        ("3", 1),
        ("4", 0),
    ]
    assert "1 rows of records that the sampler repeated" in caplog.text


def test_part_on_another_file_system_is_named(tmp_path: Path):
    writer, trainer = PredictionWriter(str(tmp_path / "rows.jsonl")), process(0)
    writer.on_predict_epoch_start(trainer, None)
    with pytest.raises(ValueError, match=r"does not see .*rank1\.partial.*share"):
        writer.on_predict_epoch_end(trainer, None)
