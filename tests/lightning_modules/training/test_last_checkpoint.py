"""`--ckpt_path last` continues the run whose files it is given, though every start logs to a new folder."""

import os
from pathlib import Path

import pytest

import cli
from lightning_modules.training.last_checkpoint import last_checkpoint

CONFIGS = Path(__file__).parents[3] / "configs"


def write(path, age):
    """A checkpoint so many seconds old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (10_000 - age, 10_000 - age))
    return path


def test_the_newest_last_checkpoint_of_all_starts_is_found(tmp_path):
    trainer = {"default_root_dir": str(tmp_path), "callbacks": [{"class_path": "x", "init_args": {"dirpath": None}}]}
    assert last_checkpoint(trainer) is None
    logs = tmp_path / "lightning_logs"
    write(logs / "version_0" / "checkpoints" / "last.ckpt", age=30)
    newest = write(logs / "version_1" / "checkpoints" / "last-v1.ckpt", age=10)
    write(logs / "version_1" / "checkpoints" / "last.ckpt", age=20)
    write(logs / "version_1" / "checkpoints" / "step=4.ckpt", age=0)
    write(logs / "version_1" / "checkpoints" / "lasting.ckpt", age=0)
    assert last_checkpoint(trainer) == newest
    without_logger = write(tmp_path / "checkpoints" / "last.ckpt", age=5)
    assert last_checkpoint(trainer) == without_logger
    trainer["callbacks"][0]["init_args"]["dirpath"] = "elsewhere"  # which Lightning itself looks into
    assert last_checkpoint(trainer) is None


def test_a_second_start_with_last_goes_on(tiny_folder, mixed_data, tmp_path, monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    small = "{num_frames: 4, min_pixels: 784, max_pixels: 3136, image_max_pixels: 3136}"
    saving = "{class_path: ModelCheckpoint, init_args: {every_n_train_steps: 1, save_last: true, save_top_k: 0}}"
    files = [CONFIGS / "sft" / "qwen2_5_vl_3b.yaml", CONFIGS / "trainer" / "cpu.yaml"]
    options = [
        *(f"--config={path}" for path in files),
        f"--model.init_args.model_name_or_path={tiny_folder}",
        f"--data.init_args.data_root={mixed_data.parent}",
        f"--data.init_args.train_files=[{mixed_data}]",
        f"--data.init_args.train_frames={small}",
        "--data.init_args.num_workers=0",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.accumulate_grad_batches=1",
        f"--trainer.callbacks=[{saving}]",
        "--ckpt_path=last",
    ]
    first = cli.lightning_cli(["fit", *options, "--trainer.max_steps=2"])
    assert first.trainer.ckpt_path is None  # there was none yet
    second = cli.lightning_cli(["fit", *options, "--trainer.max_steps=3"])
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/last.ckpt")
    assert Path(second.trainer.ckpt_path) == checkpoint
    assert second.trainer.global_step == 3
    assert second.trainer.fit_loop.epoch_loop.total_batch_idx == 2  # batches 0 and 1 were not repeated


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, "error on rank 3 of 8: ckpt_path is 'absent'"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "error on rank 1 of 2: ckpt_path is 'absent'"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "error: ckpt_path is 'absent'"),
    ],
)
def test_a_mistake_names_the_rank_that_found_it(monkeypatch, capsys, environment, said):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    files = [CONFIGS / "sft" / "qwen2_5_vl_3b.yaml", CONFIGS / "trainer" / "cpu.yaml"]
    assert cli.main(["fit", *(f"--config={path}" for path in files), "--ckpt_path=absent"]) == 2
    assert said in capsys.readouterr().err
