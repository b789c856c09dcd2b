"""`--ckpt_path last` continues the run whose files it is given, though every start logs to a new folder."""

import os
from pathlib import Path

import pytest
import torch

import cli
from lightning_modules.training.checkpoint_files import WholeCheckpoints
from lightning_modules.training.last_checkpoint import last_checkpoint
from rewards.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"


def write(path, age, step=1):
    """A checkpoint so many seconds old."""
    state = {"global_step": step, "state_dict": {"a": torch.ones(300)}, "optimizer_states": [], "lr_schedulers": []}
    WholeCheckpoints().save_checkpoint(state, path)
    os.utime(path, (10_000 - age, 10_000 - age))
    return path


def cut(path):
    times = path.stat()
    path.write_bytes(path.read_bytes()[:700])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_newest_checkpoint_of_all_starts_is_found(tmp_path):
    trainer = {"default_root_dir": str(tmp_path), "callbacks": [{"class_path": "x", "init_args": {"dirpath": None}}]}
    assert last_checkpoint(trainer) is None
    logs = tmp_path / "lightning_logs"
    write(logs / "version_0" / "checkpoints" / "last.ckpt", age=30)
    assert last_checkpoint(trainer).path == logs / "version_0" / "checkpoints" / "last.ckpt"
    newest = write(logs / "version_1" / "checkpoints" / "last-v1.ckpt", age=10)
    write(logs / "version_1" / "checkpoints" / "last.ckpt", age=20)
    write(logs / "version_1" / "checkpoints" / ".last.ckpt.12.partial", age=0)
    assert last_checkpoint(trainer).path == newest
    without_save_last = write(logs / "version_1" / "checkpoints" / "step=4.ckpt", age=9)
    assert last_checkpoint(trainer).path == without_save_last
    without_logger = write(tmp_path / "checkpoints" / "last.ckpt", age=5)
    assert last_checkpoint(trainer).path == without_logger
    of_the_scheduler = write(tmp_path / "hpc_ckpt_3.ckpt", age=4, step=17)
    assert last_checkpoint(trainer).path == of_the_scheduler
    elsewhere = write(tmp_path / "else" / "where" / "at" / "all" / "last.ckpt", age=3)
    assert last_checkpoint(trainer).path == of_the_scheduler
    trainer["callbacks"].append({"class_path": "y", "init_args": {"dirpath": str(elsewhere.parent)}})
    assert last_checkpoint(trainer).path == elsewhere
    assert last_checkpoint(trainer).state["global_step"] == 1


def test_what_cannot_be_resumed_is_passed_over_aloud(tmp_path):
    trainer = {"default_root_dir": str(tmp_path)}
    sound = write(tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt", age=30, step=4)
    newer = write(tmp_path / "lightning_logs" / "version_1" / "checkpoints" / "last.ckpt", age=20)
    cut(newer)
    with pytest.warns(UserWarning, match="passes over .*version_1/checkpoints/last.ckpt: the file is cut off"):
        found = last_checkpoint(trainer)
    assert (found.path, found.state["global_step"]) == (sound, 4)
    cut(sound)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="none of the checkpoints can be resumed"):
        last_checkpoint(trainer)


def test_a_kill_between_the_two_renames_of_a_folder_loses_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    write(folder / "last.ckpt", age=10, step=6)
    (folder / "last.ckpt").rename(folder / ".last.ckpt.former")
    assert last_checkpoint({"default_root_dir": str(tmp_path)}).path == folder / "last.ckpt"


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
