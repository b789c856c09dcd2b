"""Runs of the demo that are killed again and again, and end with the weights of a run that never was.

`make test-faults` runs this and prints the table of docs/reliability.md. Every start is the same command, with
`--ckpt_path last`. SIGKILL goes to all processes of the run at a random moment after the start-up, and in one start of
every chain at a random call within the write of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _fsdp2(folders: bool) -> str:
    strategy = "lightning_modules.training.strategies.FSDP2Strategy"
    return json.dumps({"class_path": strategy, "init_args": {"save_distributed_checkpoint": folders}})


STRATEGIES = {
    "one process": [],
    "DDP": ["--trainer.devices=2", "--trainer.strategy=ddp"],
    "FSDP2, file": ["--trainer.devices=2", f"--trainer.strategy={_fsdp2(False)}"],
    "FSDP2, folder": ["--trainer.devices=2", f"--trainer.strategy={_fsdp2(True)}"],
}
LENGTHS = {"sft": (16, 96, 4), "grpo": (8, 64, 3)}
"""Records per step over all ranks, records, epochs: 24 steps each."""
SFT_STEPS = 350
"""Of the model that GRPO starts from; it has to be right now and then, or no reward would differ."""


@dataclass(kw_only=True)
class Chain:
    stage: str
    strategy: str
    folder: Path
    kills: list[str] = field(default_factory=list)
    starts: int = 0
    resumed: list[int] = field(default_factory=list)
    """Step that each start went on from; 0 where there was no checkpoint yet."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of a stage share."""

    model: Path
    data: Path
    train_file: Path


def command(stage: str, strategy: str, folder: Path, setting: Setting, module: list[str]) -> list[str]:
    batch, _, epochs = LENGTHS[stage]
    ranks = 2 if STRATEGIES[strategy] else 1
    callbacks = [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"every_n_train_steps": 2, "save_last": True},
        },
        {"class_path": "lightning_modules.callbacks.HFExport"},
    ]
    options = {
        "config": ROOT / "configs" / "demo" / f"{stage}.yaml",
        "model.init_args.model_name_or_path": setting.model,
        "data.init_args.data_root": setting.data,
        "data.init_args.train_files": f"[{setting.train_file}]",
        "data.init_args.val_files": "null",
        "data.init_args.batch_size": batch // ranks,
        "trainer.default_root_dir": folder,
        "trainer.logger.init_args.save_dir": folder,
        "trainer.max_steps": -1,
        "trainer.max_epochs": epochs,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks": json.dumps(callbacks),
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, *module, "fit", *given, *STRATEGIES[strategy], "--ckpt_path=last"]


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        return subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # the group has ended by itself
        return
    process.wait()


def wait(process: subprocess.Popen, until: float | None = None) -> bool:
    """Whether the process has ended, at once or by the given moment."""
    try:
        process.wait(None if until is None else max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def training_began(process: subprocess.Popen, log: Path) -> float:
    """Wait until the parameters are listed, the last thing before training or the restoration of a checkpoint."""
    while process.poll() is None and "Parameters:" not in log.read_text():
        time.sleep(0.05)
    return time.monotonic()


def resumed_from(log: Path) -> int:
    found = re.search(r"written after step (\d+)", log.read_text())
    return int(found[1]) if found else 0


def run_to_the_end(stage: str, strategy: str, folder: Path, setting: Setting) -> float:
    """An undisturbed run; returns the seconds from its first step on."""
    log = folder.with_suffix(".log")
    process = start(command(stage, strategy, folder, setting, ["cli.py"]), log)
    began = training_began(process, log)
    if process.wait() != 0:
        raise SystemExit(f"{log} failed:\n{log.read_text()[-4000:]}")
    return time.monotonic() - began


def run_chain(chain: Chain, setting: Setting, seconds: float, kills: int, draw: random.Random) -> None:
    """Start, kill and start again, until there were so many kills and the run has come to its end."""
    in_a_write = draw.randrange(kills)
    while True:
        number = len(chain.kills)
        log = chain.folder.with_name(f"{chain.folder.name}-{chain.starts}.log")
        chain.starts += 1
        inside = number == in_a_write and number < kills
        checkpoint, call = draw.choice((1, 2, 3, 4)), draw.randrange(1, 60)
        module = ["-m", "tests.faults.killed_writes", str(checkpoint), str(call)] if inside else ["cli.py"]
        process = start(command(chain.stage, chain.strategy, chain.folder, setting, module), log)
        began = training_began(process, log)
        chain.resumed.append(resumed_from(log))
        if inside:
            ended = wait(process)
            if process.returncode == -signal.SIGKILL:
                chain.kills.append(f"in checkpoint {checkpoint} at call {call}")
        elif number < kills:
            # Shares of the whole run, so that some chains get far before a kill and others do not.
            moment = draw.uniform(0, seconds / kills * 1.5)
            ended = wait(process, began + moment)
            if not ended:
                kill(process)
                chain.kills.append(f"{moment:.1f} s after the start-up")
        else:
            ended = wait(process)
        if ended and process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"{log} failed with status {process.returncode}:\n{log.read_text()[-4000:]}")
        if ended and process.returncode == 0:
            return


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def gradients(folder: Path, resumed: list[int]) -> tuple[int, int, bool]:
    """Steps with a gradient, all that TensorBoard shows, and whether they are one line.

    A step is logged after its checkpoint is written, so a kill between the two leaves its point out.
    """
    from lightning_modules.pictures.curves import read_scalars

    curve = read_scalars(folder / "logs")["train/grad_norm"]
    shown = [step + 1 for step, _ in curve]
    left_out = set(range(1, shown[-1] + 1)) - set(shown)
    one_line = shown == sorted(set(shown)) and left_out <= set(resumed)
    if not one_line:
        print(f"{folder}: TensorBoard shows the steps {shown}, which are not one line", file=sys.stderr, flush=True)
    return sum(value > 0 for _, value in curve), len(curve), one_line


def report(chain: Chain, whole: Path) -> bool:
    """Print the chain's row of the table; whether its weights or its line in TensorBoard are wrong."""
    expected, found = weights(whole), weights(chain.folder)
    same = expected.keys() == found.keys() and all(value.equal(found[key]) for key, value in expected.items())
    with_gradient, steps, one_line = gradients(chain.folder, chain.resumed)
    print(
        f"| {chain.stage.upper()} | {chain.strategy} | {len(chain.kills)} | {', '.join(map(str, chain.resumed[1:]))} "
        f"| {with_gradient} of {steps} | {'bit-identical' if same else 'DIFFERENT'} |",
        flush=True,
    )
    return not (same and one_line)


def prepare(output: Path, stages: list[str]) -> dict[str, Setting]:
    """Clips, the tiny model, and the fine-tuned one that GRPO starts from."""
    sys.path.insert(0, str(ROOT))
    from datamodules.synthetic.dataset import write_dataset
    from lightning_modules.commands.demo_command import TEACHER_ERROR
    from lightning_modules.policy.tiny import write_tiny_model

    data = output / "data"
    write_dataset(data, seed=0, teacher_error=TEACHER_ERROR)
    tiny = write_tiny_model(output / "tiny_model", seed=0)
    settings = {}
    for stage, split in (("sft", "sft"), ("grpo", "rl")):
        short = output / f"{stage}.jsonl"
        lines = (data / f"{split}.jsonl").read_text().splitlines(keepends=True)
        short.write_text("".join(lines[: LENGTHS[stage][1]]))
        settings[stage] = Setting(model=tiny, data=data, train_file=short)
    if "grpo" in stages:
        tuned = output / "tuned"
        if not (tuned / "model").exists():
            setting = Setting(model=tiny, data=data, train_file=data / "sft.jsonl")
            arguments = command("sft", "one process", tuned, setting, ["cli.py"])
            arguments += [f"--trainer.max_steps={SFT_STEPS}", "--trainer.max_epochs=10"]
            if start(arguments, output / "tuned.log").wait() != 0:
                raise SystemExit((output / "tuned.log").read_text()[-4000:])
        settings["grpo"] = Setting(model=tuned / "model", data=data, train_file=settings["grpo"].train_file)
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/faults"))
    parser.add_argument("--kills", type=int, default=4, help="per chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=list(LENGTHS), choices=list(LENGTHS))
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    given = parser.parse_args()
    output = given.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    settings = prepare(output, given.stages)
    print("| stage | processes | kills | went on from steps | steps with a gradient | weights |")
    print("|---|---|---|---|---|---|", flush=True)
    total, wrong = 0, 0
    for stage in given.stages:
        for strategy in given.strategies:
            name = f"{stage}-{strategy.replace(', ', '-').replace(' ', '-').lower()}"
            whole = output / f"{name}-whole"
            shutil.rmtree(whole, ignore_errors=True)
            seconds = run_to_the_end(stage, strategy, whole, settings[stage])
            draw, left = random.Random(f"{given.seed} {name}"), given.kills
            while left > 0:  # a chain may come to its end before it was killed so often
                chain = Chain(stage=stage, strategy=strategy, folder=output / f"{name}-killed-{left}")
                shutil.rmtree(chain.folder, ignore_errors=True)
                run_chain(chain, settings[stage], seconds, left, draw)
                left -= len(chain.kills)
                total += len(chain.kills)
                wrong += report(chain, whole)
    print(f"\n{total} kills; {wrong} chains ended with other weights or with a broken line in TensorBoard.")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
