"""SIGTERM, SIGUSR1 and Ctrl-C end a step with a checkpoint, and the same command goes on as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cli
from lightning_modules.pictures.curves import read_scalars

ROOT = Path(__file__).parent.parent
STEPS = 6
FSDP2 = json.dumps({"class_path": "lightning_modules.training.strategies.FSDP2Strategy"})


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Lightning keeps a seed in the environment; a stopped run keeps its signal handlers until the process ends."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def options(tiny_folder, mixed_data):
    """The demo's fine-tuning on 12 records, two epochs of three steps, in a folder."""

    def build(folder, *more, stage="sft", batch=4, workers=0, val=None, callbacks=(), **signal_at):
        saving = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 2, "save_last": True}}
        used = [saving, {"class_path": "lightning_modules.callbacks.HFExport"}, *callbacks]
        if signal_at:
            used.append({"class_path": "tests.faults.signal_at.SignalAt", "init_args": signal_at})
        given = {
            "config": ROOT / "configs" / "demo" / f"{stage}.yaml",
            "model.init_args.model_name_or_path": tiny_folder,
            "data.init_args.data_root": mixed_data.parent,
            "data.init_args.train_files": f"[{mixed_data}]",
            "data.init_args.val_files": f"[{val}]" if val else "null",
            "data.init_args.batch_size": batch,
            "data.init_args.num_workers": workers,
            "data.init_args.train_frames.image_max_pixels": 3136,
            "data.init_args.eval_frames.image_max_pixels": 3136,
            "trainer.default_root_dir": folder,
            "trainer.logger.init_args.save_dir": folder,
            "trainer.max_steps": -1,
            "trainer.max_epochs": 2,
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": "false",
            "trainer.callbacks": json.dumps(used),
        }
        return ["fit", *(f"--{name}={value}" for name, value in given.items()), *more, "--ckpt_path=last"]

    return build


def status(arguments):
    try:
        return cli.main(arguments)
    except SystemExit as left:
        return left.code


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_equal(folder, other):
    expected, found = weights(folder), weights(other)
    assert expected.keys() == found.keys() and all(value.equal(found[name]) for name, value in expected.items())


def logged_steps(folder, tag="train/loss"):
    return [step for step, _ in read_scalars(folder / "logs")[tag]]


def test_a_signal_ends_the_step_and_the_same_command_goes_on(options, tmp_path, capfd):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert status(options(whole)) == 0
    assert status(options(run, step=3, number=int(signal.SIGTERM))) == 143
    said = capfd.readouterr().err
    assert "SIGTERM: ending the step in progress." in said
    assert "SIGTERM ended this training after step 3. Checkpoint: " in said
    assert "The same command with --ckpt_path last goes on from it." in said
    (checkpoint,) = run.rglob("last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3
    assert not (run / "model").exists()
    assert logged_steps(run) == [0, 1, 2]  # the step in progress was finished and logged
    assert status(options(run, step=4, number=int(signal.SIGUSR1))) == 143
    assert status(options(run, step=5, number=int(signal.SIGINT))) == 130
    assert status(options(run)) == 0
    assert_equal(whole, run)
    assert logged_steps(run) == list(range(STEPS))
    losses, expected = (read_scalars(folder / "logs")["train/loss"] for folder in (run, whole))
    assert losses == expected
    # All of this was one run for ModelCheckpoint too: its one checkpoint of the best, and the last one.
    assert sorted(path.name for path in run.rglob("*.ckpt")) == ["epoch=1-step=6.ckpt", "last.ckpt"]


@pytest.mark.parametrize("limit", [(), (f"--trainer.max_steps={STEPS}",)], ids=["epochs", "steps"])
def test_a_finished_run_makes_the_export_that_a_kill_left_out(options, tmp_path, limit):
    assert status(options(tmp_path, *limit)) == 0
    whole = (tmp_path / "model").rename(tmp_path / "whole")
    assert status(options(tmp_path, *limit)) == 0
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "model"))
    assert all(value.equal(found[name]) for name, value in expected.items())
    assert logged_steps(tmp_path) == list(range(STEPS))  # nothing was trained again


def test_a_signal_before_the_first_step_leaves_nothing(options, tmp_path, capfd):
    early = {"class_path": "tests.faults.signal_at.SignalAtStart", "init_args": {"number": int(signal.SIGTERM)}}
    assert status(options(tmp_path, callbacks=[early])) == 143
    assert "SIGTERM ended this training after step 0; there was nothing to save." in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_signal_at_the_last_step_exports_at_the_next_start(options, tmp_path):
    assert status(options(tmp_path, step=STEPS, number=int(signal.SIGTERM))) == 143
    assert not (tmp_path / "model").exists()
    assert status(options(tmp_path)) == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert logged_steps(tmp_path) == list(range(STEPS))


def test_gathered_gradients_are_not_lost(options, tmp_path):
    """Two micro-batches make a step: one signal, in the first of them."""
    gathering = ("--trainer.accumulate_grad_batches=2",)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert status(options(whole, *gathering, batch=2)) == 0
    assert status(options(run, *gathering, batch=2, step=2, number=int(signal.SIGTERM))) == 143
    (checkpoint,) = run.rglob("last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 2
    assert state["VideoDataModule"]["consumed"] == 8
    assert status(options(run, *gathering, batch=2)) == 0
    assert_equal(whole, run)


def started(arguments):
    """Runs a command in a group of processes of its own; returns its status and what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "cli.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        start_new_session=True,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("strategy", ["ddp", FSDP2], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize(("rank", "group"), [(0, False), (1, False), (0, True)], ids=["first", "second", "all"])
def test_one_signal_to_any_rank_ends_all(options, tmp_path, stage, strategy, rank, group):
    two = ("--trainer.devices=2", f"--trainer.strategy={strategy}")
    settings = {"stage": stage, "batch": 2, "workers": 1}
    at = {"step": 3, "number": int(signal.SIGTERM), "rank": rank, "group": group}
    code, said = started(options(tmp_path / "run", *two, **settings, **at))
    assert code == 143, said[-4000:]
    assert said.count("SIGTERM ended this training after step 3.") == 1
    assert "Traceback" not in said
    for folder in ("run", "whole"):
        code, said = started(options(tmp_path / folder, *two, **settings))
        assert code == 0, said[-4000:]
    assert_equal(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once(options, tmp_path):
    at = {"step": 3, "number": int(signal.SIGINT), "group": True, "times": 2}
    code, said = started(options(tmp_path, workers=2, **at))
    assert code == 130, said[-4000:]
    assert "Ctrl-C again ends it at once." in said
    assert "ended at once, without a checkpoint" in said
    assert not list(tmp_path.rglob("step=3.ckpt"))
