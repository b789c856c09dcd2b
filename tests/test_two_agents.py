"""Two machines on one: torchrun agents that meet on the loopback, to the end and with one killed; SLURM's variables."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
SCRIPT = ROOT / "docs" / "examples" / "train_torchrun.sh"
STEPS = 12
WATCHDOG_SECONDS = 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def files(tiny_folder, mixed_data, tmp_path_factory):
    """The shipped run and the shipped trainer for several machines, cut down to a tiny model on CPUs."""
    folder = tmp_path_factory.mktemp("configs")
    small = "{num_frames: 4, min_pixels: 784, max_pixels: 3136, image_max_pixels: 3136}"
    (folder / "model.yaml").write_text(
        f"model: {{init_args: {{model_name_or_path: {tiny_folder}, sampling: {{max_new_tokens: 8}}}}}}\n"
        f"data: {{init_args: {{data_root: {mixed_data.parent}, train_files: [{mixed_data}], num_workers: 0, "
        f"train_frames: {small}}}}}\n"
        f"trainer:\n  max_steps: {STEPS}\n  max_epochs: 2\n  enable_progress_bar: false\n  callbacks:\n"
        "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
        "      init_args: {every_n_train_steps: 2, save_top_k: -1, save_last: true}\n"
        "    - class_path: lightning_modules.callbacks.HFExport\n"
    )
    shipped = (CONFIGS / "trainer" / "fsdp_multinode.yaml").read_text()
    changes = {
        "accelerator: gpu": "accelerator: cpu",
        "devices: auto": "devices: 1",
        "precision: bf16-mixed": "precision: 32-true",
        "seconds: 900": f"seconds: {WATCHDOG_SECONDS}",
        "timeout_seconds: 1800": "timeout_seconds: 120",
    }
    for old, new in changes.items():
        assert shipped.count(old) == 1
        shipped = shipped.replace(old, new)
    (folder / "nodes.yaml").write_text(shipped)
    return [CONFIGS / "grpo" / "qwen2_5_vl_3b.yaml", folder / "model.yaml", folder / "nodes.yaml"]


class Nodes:
    """Two agents of the sample script, each with its output in a file; a second start continues the first."""

    def __init__(self, files, output):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        *run, trainer = files
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            "LOGS": str(output.with_name("logs")),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "RUN_ID": str(port),
            "NODES": "2",
            "GPUS": "1",
            "TRAINER": str(trainer),
        }
        command = [str(SCRIPT), *(f"--config={path}" for path in run), f"--trainer.default_root_dir={output}"]
        self.logs = [output.with_name(f"{output.name}-{port}-agent{node}.log") for node in range(2)]
        self.agents = []
        for log in self.logs:
            with log.open("w") as file:
                self.agents.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
                )
            wait_for(lambda: answers(port))  # so that the first agent holds the rendezvous

    def processes(self, node):
        """Process ids of a node's agent and of all that descend from it; workers have sessions of their own."""
        listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in listing.splitlines()]
        parents = {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}
        found = [self.agents[node].pid] if self.agents[node].pid in parents else []
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def kill(self, node, number):
        for pid in self.processes(node):
            os.kill(pid, number)

    def wait(self, node, seconds):
        return self.agents[node].wait(timeout=seconds)

    def said(self, node):
        return self.logs[node].read_text()

    def close(self):
        for node, agent in enumerate(self.agents):
            self.kill(node, signal.SIGKILL)
            agent.wait()


@pytest.fixture
def nodes(files, tmp_path):
    started = []

    def start():
        started.append(Nodes(files, tmp_path / "run"))
        return started[-1]

    yield start
    for each in started:
        each.close()


def finished(nodes):
    for node in range(2):
        assert nodes.wait(node, seconds=200) == 0, nodes.said(node)[-4000:]


def answers(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.05)


def checkpoints(output):
    return sorted(output.glob("lightning_logs/version_*/checkpoints/last.ckpt"))


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """A run that nobody disturbs."""
    output = tmp_path_factory.mktemp("whole") / "run"
    nodes = Nodes(files, output)
    try:
        finished(nodes)
    finally:
        nodes.close()
    return output


def weights(output):
    from safetensors.torch import load_file

    return load_file(output / "model" / "model.safetensors")


def test_two_agents_train_to_the_end(whole):
    (checkpoint,) = checkpoints(whole)
    assert checkpoint.is_dir()
    assert {path.suffix for path in checkpoint.iterdir()} >= {".distcp", ".pt"}
    assert not list(checkpoint.parent.glob(".*"))  # nothing partial is left
    assert (whole / "model" / "config.json").is_file()


@pytest.mark.parametrize("victim", [0, 1], ids=["the one with the rendezvous", "the other one"])
def test_killing_one_agent_ends_the_other_and_last_resumes(nodes, whole, tmp_path, victim):
    first, other = nodes(), 1 - victim
    wait_for(lambda: checkpoints(tmp_path / "run"))
    first.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    assert first.wait(other, seconds=WATCHDOG_SECONDS + 60) != 0
    took = time.monotonic() - killed
    said = first.said(other)
    message = next(line for line in said.splitlines() if "watchdog: rank" in line)
    assert re.search(r"rank \d of 2 on \S+ \(pid \d+\) (failed|has made no progress .*) in step \d+, phase: ", message)
    assert "problem_id" in message
    print(f"ended {took:.1f} s after the kill: {message}")
    assert took < WATCHDOG_SECONDS + 10
    finished(nodes())
    resumed, undisturbed = weights(tmp_path / "run"), weights(whole)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


@pytest.mark.parametrize("victim", [0, 1], ids=["the one with the rendezvous", "the other one"])
def test_a_frozen_machine_ends_the_other_within_the_time_of_the_watchdog(nodes, tmp_path, victim):
    """No connection breaks: only the watchdog can tell."""
    run, other = nodes(), 1 - victim
    wait_for(lambda: checkpoints(tmp_path / "run"))
    run.kill(victim, signal.SIGSTOP)
    frozen = time.monotonic()
    wait_for(lambda: f"has made no progress for {WATCHDOG_SECONDS} s in step" in run.said(other))
    wait_for(lambda: run.processes(other) in ([], [run.agents[other].pid]), seconds=20)
    worker = time.monotonic() - frozen
    print(f"the worker had ended {worker:.1f} s after the freeze")
    assert WATCHDOG_SECONDS - 5 < worker < WATCHDOG_SECONDS + 10
    if victim == 1:  # else torchrun's agent itself waits for the frozen rendezvous, without end
        assert run.wait(other, seconds=30) != 0
        print(f"its agent had ended {time.monotonic() - frozen:.1f} s after the freeze")
        assert "exitcode  : 75" in run.said(other)


STAND_IN = """#!/usr/bin/env bash
# Two tasks on two nodes, as far as their variables go.
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" & done
wait -n && wait -n
"""


def test_the_sample_job_of_slurm_trains_to_the_end(files, whole, tmp_path):
    (tmp_path / "srun").write_text(STAND_IN)
    (tmp_path / "srun").chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    *run, trainer = files
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "MASTER_PORT": str(port),
        "PYTHON": sys.executable,
        "TRAINER": str(trainer),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "videorft",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODELIST": "127.0.0.1",
    }
    script = ROOT / "docs" / "examples" / "train_slurm.sh"
    options = [*(f"--config={path}" for path in run), f"--trainer.default_root_dir={tmp_path / 'run'}"]
    done = subprocess.run([script, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    trained, expected = weights(tmp_path / "run"), weights(whole)
    assert all(torch.equal(trained[name], expected[name]) for name in expected)
