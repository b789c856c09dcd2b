"""A run that hangs ends, and says where it stood; each in a process of its own, since it must end."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_modules.callbacks import Watchdog
from lightning_modules.callbacks.watchdog import EXIT_CODE
from tests.lightning_modules.module_runs import data_module, grpo_module, sft_module, trainer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def start(tiny_folder, mixed_data, tmp_path):
    """Runs `hanging_run` on so many ranks; gives exit code, what was said, and seconds."""

    def starter(ranks, hang, *options):
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        script = ["-m", "tests.lightning_modules.callbacks.hanging_run", tiny_folder, mixed_data, tmp_path, hang]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *launcher, *map(str, script), *options]
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
        return done.returncode, done.stderr, time.monotonic() - started

    return starter


def test_the_message_of_a_failure_cannot_steer_the_terminal(capfd):
    Watchdog().on_exception(None, None, ValueError("\x1b[2Jgone\nsecond line"))
    assert capfd.readouterr().err.endswith("ValueError: \\x1b[2Jgone\nsecond line\n")


def test_a_run_that_hangs_ends_and_says_where(start, mixed_data):
    code, said, _ = start(1, "reward")
    assert code == EXIT_CODE
    message = said[said.index("watchdog: rank 0 of 1") :]
    assert "has made no progress for 3 s in step 2, phase: training step, reward; records: " in message
    assert f"{mixed_data}:" in message.splitlines()[0]
    assert "(problem_id " in message.splitlines()[0]
    assert "hanging_run.py" in message  # the stack
    assert "in score" in message


@pytest.mark.slow
def test_a_library_that_holds_the_interpreter_is_ended_from_outside(start):
    code, said, _ = start(1, "holding", "--leaving=2")
    assert code == 1
    assert "Timeout (0:00:05)!" in said
    assert "in score" in said


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_rank_that_hangs_is_told_from_the_one_that_waits(start, strategy):
    code, said, seconds = start(2, "reward", f"--strategy={strategy}", "--rank=1", "--seconds=6")
    assert code != 0
    assert "rank 1 of 2" in said
    assert "has made no progress for 6 s in step 2, phase: training step, reward" in said
    # The other rank either runs out of time as well, or loses its connection to the first one.
    (other,) = [line for line in said.splitlines() if line.startswith("watchdog: rank 0 of 2")]
    assert "in step 2, phase: training step, between phases" in other
    assert seconds < 100


@pytest.mark.slow
def test_a_rank_that_fails_says_what_and_where(start):
    code, said, _ = start(2, "raise", "--rank=1")
    assert code != 0
    (line, reason) = said[said.index("watchdog: rank 1 of 2") :].splitlines()[:2]
    assert "failed in step 2, phase: training step, reward; records: " in line
    assert re.search(r"RewardError: .* failed on problem_id \w+: RuntimeError: the judge is out of order", reason)


def test_slow_steps_are_no_hang_and_the_watch_ends_with_the_run(tiny_folder, mixed_data, tmp_path):
    watchdog = Watchdog(seconds=30)
    phases = []
    note = watchdog._enter
    watchdog._enter = lambda phase, **given: (phases.append(phase), note(phase, **given))
    data = data_module(tiny_folder, mixed_data, train_format="prompts")
    run = trainer(tmp_path, max_steps=2, limit_val_batches=1, callbacks=[watchdog])
    run.fit(grpo_module(tiny_folder, micro_batch_groups=2), data)
    steps = [
        "training step",
        *(f"training step, {phase}" for name in ("rollout", "reward", "update") for phase in (name, "between phases")),
        "waiting for the next batch",
    ]
    assert phases[:2] == ["set-up: reading records, loading the model", "waiting for the first batch"]
    assert phases[2 : 2 + len(steps)] == steps
    watchdog._thread.join(timeout=10)
    assert not watchdog._thread.is_alive()


def test_a_limit_beyond_the_process_group_is_refused():
    class Strategy:
        from datetime import timedelta

        _timeout = timedelta(seconds=60)

    class Trainer:
        world_size, strategy = 2, Strategy()

    with pytest.raises(ValueError, match=r"Watchdog.seconds is 90.*gives up after 60 s"):
        Watchdog(seconds=90).setup(Trainer(), None, "fit")
    with pytest.raises(ValueError, match=r"Watchdog.seconds is 0"):
        Watchdog(seconds=0)


def test_fine_tuning_and_evaluation_name_their_records(tiny_folder, mixed_data, tmp_path):
    watchdog = Watchdog(seconds=30)
    seen = []
    note = watchdog._enter
    watchdog._enter = lambda phase, **given: (note(phase, **given), seen.append(watchdog._progress))
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=1, callbacks=[watchdog])
    run.fit(sft_module(tiny_folder), data)
    (training,) = [progress for progress in seen if progress.phase == "training step"]
    (validation,) = [progress for progress in seen if progress.phase == "validate"]
    assert len(training.records) == 4
    assert len(validation.records) == 6
    assert all("problem_id" in record for record in training.records + validation.records)
