"""What the command line leaves behind: nothing of a trial run, predictions always, and never in another run's place."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cli
from lightning_modules.policy_module import PolicyModule
from tests.lightning_modules.training.test_run_lock import HOLD

ROOT = Path(__file__).parent.parent
FRAMES = "{num_frames: 4, min_pixels: 784, max_pixels: 3136, image_max_pixels: 3136}"
SAVING = "{class_path: ModelCheckpoint, init_args: {every_n_train_steps: 2, save_last: true}}"


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")


@pytest.fixture
def run(tiny_folder, mixed_data, tmp_path):
    """Runs a command of the shipped GRPO recipe on the tiny model, in the folder `run`; gives the exit status."""

    def run(command, *options):
        return cli.main(
            [
                command,
                f"--config={ROOT / 'configs/grpo/qwen2_5_vl_3b.yaml'}",
                f"--config={ROOT / 'configs/trainer/cpu.yaml'}",
                f"--model.init_args.model_name_or_path={tiny_folder}",
                "--model.init_args.sampling.max_new_tokens=4",
                "--model.init_args.evaluation.max_new_tokens=4",
                f"--data.init_args.data_root={mixed_data.parent}",
                f"--data.init_args.train_files=[{mixed_data}]",
                f"--data.init_args.val_files=[{mixed_data}]",
                f"--data.init_args.predict_files=[{mixed_data}]",
                f"--data.init_args.train_frames={FRAMES}",
                f"--data.init_args.eval_frames={FRAMES}",
                "--data.init_args.num_workers=0",
                f"--trainer.default_root_dir={tmp_path / 'run'}",
                "--trainer.max_steps=3",
                "--trainer.limit_val_batches=2",
                "--trainer.enable_progress_bar=false",
                *options,
            ]
        )

    return run


def files(folder):
    """Path -> content of every file."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_saving(callbacks="RolloutStore, HFExport"):
    entries = [f"{{class_path: lightning_modules.callbacks.{name}}}" for name in callbacks.split(", ")]
    return f"--trainer.callbacks=[{', '.join([*entries, SAVING])}]"


def test_a_second_run_in_a_used_folder_is_refused_and_a_resumed_one_goes_on(run, tmp_path, capsys, monkeypatch):
    assert run("fit", with_saving()) == 0
    (last,) = (tmp_path / "run").rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 3  # every second step is saved at its time
    before = files(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(PolicyModule, "load_policy", lambda self: pytest.fail("the model is loaded"))
        for callbacks in ("HFExport", "RolloutStore"):
            assert run("fit", with_saving(callbacks)) == 2
            said = capsys.readouterr().err
            assert re.search(r"error: \S+ holds the (model|rollouts) of an earlier run", said)
            assert "--ckpt_path last" in said
            assert "trainer.default_root_dir" in said
    assert files(tmp_path / "run") == before
    assert run("fit", with_saving(), "--trainer.max_steps=4", "--ckpt_path=last") == 0
    steps = {int(re.search(r"step\d+-(\d+)", path.name)[1]) for path in (tmp_path / "run/rollouts").iterdir()}
    assert max(steps) == 4


def test_a_trial_run_writes_nothing_and_is_never_resumed(run, tmp_path, recwarn):
    assert run("fit", with_saving(), "--trainer.fast_dev_run=true") == 0
    assert files(tmp_path / "run") == {}
    assert run("fit", with_saving(), "--ckpt_path=last", "--trainer.max_steps=1") == 0
    assert any("there is no last checkpoint available" in str(each.message) for each in recwarn)


def test_a_trial_run_beside_a_finished_one_changes_nothing(run, tmp_path):
    assert run("fit", with_saving(), "--trainer.max_steps=1") == 0
    before = files(tmp_path / "run")
    assert run("fit", with_saving(), "--trainer.fast_dev_run=true") == 0
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_predictions_are_kept_without_being_asked_for_and_every_start_has_its_own(run, tmp_path, caplog, command):
    options = ["--trainer.limit_predict_batches=2", "--trainer.callbacks=null", "--trainer.logger=false"]
    found = []
    for number in range(2):
        caplog.clear()
        with caplog.at_level("INFO"):
            assert run(command, *options, f"--seed_everything={number}") == 0
        (said,) = re.findall(r"Predictions: (\S+)", caplog.text)
        found.append(Path(said))
        rows = [json.loads(line) for line in Path(said).read_text().splitlines()]
        assert [row["problem_id"] for row in rows] == ["0", "1"]
        assert all("completion" in row for row in rows)
    assert [path.relative_to(tmp_path / "run").as_posix() for path in found] == [
        "predictions.jsonl",
        "predictions-2.jsonl",
    ]


def test_predictions_are_in_the_folder_of_the_logs(run, tmp_path):
    for _ in range(2):
        assert run("validate", "--trainer.callbacks=null") == 0
    kept = sorted(path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("pred*.jsonl"))
    assert kept == [f"lightning_logs/version_{number}/predictions.jsonl" for number in range(2)]


def test_a_file_that_the_user_names_is_not_replaced_by_another_run(run, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    writer = f"{{class_path: lightning_modules.callbacks.PredictionWriter, init_args: {{output: {output}}}}}"
    assert run("validate", f"--trainer.callbacks=[{writer}]", "--trainer.logger=false") == 0
    before = output.read_bytes()
    assert run("validate", f"--trainer.callbacks=[{writer}]", "--trainer.logger=false") == 2
    assert "answers.jsonl', which holds the predictions of an earlier run" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert not (tmp_path / "run" / "predictions.jsonl").exists()


def test_a_second_fit_at_the_same_time_ends_before_it_reads_anything(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PolicyModule, "load_policy", lambda self: pytest.fail("the model is loaded"))
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    first = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        assert run("fit", "--data.init_args.train_files=[absent.jsonl]") == 2
    finally:
        first.communicate("\n")
    said = capsys.readouterr().err
    assert re.search(rf"error: \S+run is in use: process {first.pid} on ", said)
    assert "absent.jsonl" not in said
    assert list((tmp_path / "run").iterdir()) == []
    assert run("fit", "--data.init_args.train_files=[absent.jsonl]") == 2
    assert "absent.jsonl is not a file" in capsys.readouterr().err
    assert not (tmp_path / "run" / "fit.lock").exists()  # a mistake releases the folder
