"""Two gloo processes with half of the batch each against one process with all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lightning_modules.module_runs import scalars

ROOT = Path(__file__).parents[2]


def launch(ranks, *arguments, module="tests.lightning_modules.two_ranks"):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = ["-m", module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_two_ranks_give_the_trajectory_of_one(tiny_folder, mixed_data, tmp_path, loss):
    for ranks in (1, 2):
        launch(ranks, tiny_folder, mixed_data, tmp_path / str(ranks), loss)
    one, two = scalars(tmp_path / "1"), scalars(tmp_path / "2")
    for tag in ("train/loss", "train/grad_norm", "train/reward/mean"):
        assert len(one[tag]) == 3
        assert two[tag] == pytest.approx(one[tag], rel=1e-4, abs=1e-6), tag
    for tag in ("val/accuracy", "val/completion_tokens", "val/accuracy/OCR"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-5), tag


def test_a_sharded_policy_computes_what_a_whole_one_does(tiny_folder, mixed_data):
    output = launch(2, tiny_folder, mixed_data, module="tests.lightning_modules.policy.sharded_policy")
    assert output.count("sharded equals whole") == 2
