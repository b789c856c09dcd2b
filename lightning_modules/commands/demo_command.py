"""`python cli.py demo`: a tiny video language model learns to reason, with the commands and configs of a large run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules.text_table import text_table
from datamodules.video.types import printable
from datamodules.whole_files import write_whole

CONFIGS = Path(__file__).parents[2] / "configs" / "demo"
TEACHER_ERROR = 0.6
"""How often the teacher errs on questions that are prone to its errors; SFT imitates that, GRPO has to correct it."""

STAGES = ("sft", "grpo")

Answers = Sequence[Mapping[str, Any]]
"""Rows of predictions.jsonl."""
RunCommand = Callable[[Sequence[str]], None]
"""Executes the command line of fit or validate."""


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """On held-out questions, 0 to 1."""

    sft_accuracy: float
    grpo_accuracy: float


@dataclass(frozen=True, kw_only=True)
class DemoSummary(Accuracies):
    """What summary.json holds."""

    seed: int
    questions: int
    chance: float
    """Accuracy of guessing among the possible answers."""
    per_task: dict[str, Accuracies]
    seconds: dict[str, float]
    """Of each stage."""


def demo_command(arguments: Sequence[str], *, run: RunCommand) -> None:
    """Train the tiny model on generated clips: SFT, GRPO, validation, table, curves."""
    from jsonargparse import auto_cli

    def demo(output: str = "runs/demo", seed: int = 0) -> None:
        """A video language model learns to reason, on a CPU, without a download.

        Args:
            output: folder for model, clips, logs and results; what an earlier demo trained there is replaced.
            seed: of weights, data and sampling.
        """
        from lightning_modules.training.run_lock import run_lock

        with run_lock(Path(output)):
            _Demo(output=Path(output), seed=seed, run=run).run_all()

    auto_cli(demo, args=list(arguments[1:]), as_positional=False, prog="cli.py demo")


@dataclass(kw_only=True)
class _Demo:
    output: Path
    seed: int
    run: RunCommand
    seconds: dict[str, float] = field(default_factory=dict)

    def run_all(self) -> None:
        """Train, validate, write `summary.json` and `curves.png`, print the table; a UserError if the folder holds
        something else."""
        from datamodules.synthetic.dataset import write_dataset
        from lightning_modules.pictures.curves import plot_curves
        from lightning_modules.policy.tiny import write_tiny_model

        started = time.perf_counter()
        self._make_room()
        with self._stage("model", "Building a Qwen2.5-VL of half a million parameters"):
            write_tiny_model(self.output / "tiny_model", seed=self.seed)
        with self._stage("data", "Drawing clips with questions"):
            write_dataset(self.output / "data", seed=self.seed, teacher_error=TEACHER_ERROR)
        with self._stage("sft", "Fine-tuning on the chains of thought of an imperfect teacher"):
            self._fit("sft", self.output / "tiny_model", "sft.jsonl")
        with self._stage("validation", "Asking the fine-tuned model held-out questions"):
            after_sft = self._validate("sft")
        with self._stage("grpo", "GRPO: only right answers are rewarded"):
            self._fit("grpo", self.output / "sft" / "model", "rl.jsonl")
        with self._stage("validation", "Asking the trained model the same questions"):
            after_grpo = self._validate("grpo")
        self.seconds["total"] = time.perf_counter() - started

        summary = _summary(after_sft, after_grpo, self.seconds, self.seed)
        write_whole(self.output / "summary.json", json.dumps(asdict(summary), indent=2) + "\n")
        sft_logs, grpo_logs = (self.output / stage / "logs" for stage in STAGES)
        plot_curves(sft_logs, grpo_logs, self.output / "curves.png", chance=summary.chance)
        print(_rendered(summary, after_sft, after_grpo, self.output))

    def _make_room(self) -> None:
        """Remove what an earlier demo trained, and nothing else."""
        from rewards.errors import UserError

        former = [folder for stage in STAGES if (folder := self.output / stage).exists()]
        if not former:
            return
        names = " and ".join(map(str, former))
        if not (self.output / "tiny_model" / "generated.json").is_file():
            raise UserError(
                f"--output is {str(self.output)!r}, where {names} would be removed, but no demo made that folder. "
                "Choose another."
            )
        print(f"Replacing the earlier demo in {self.output}: removing {names}.", flush=True)
        for folder in former:
            shutil.rmtree(folder)

    def _fit(self, stage: str, model: Path, train_file: str) -> None:
        files = f"--data.init_args.train_files=[{self.output / 'data' / train_file}]"
        logs = f"--trainer.logger.init_args.save_dir={self.output / stage}"
        self._lightning("fit", f"{stage}.yaml", stage, model, files, logs)

    def _validate(self, stage: str) -> Answers:
        predictions = self.output / stage / "predictions.jsonl"
        writer = {
            "class_path": "lightning_modules.callbacks.PredictionWriter",
            "init_args": {"output": str(predictions)},
        }
        callbacks = f"--trainer.callbacks={json.dumps([writer])}"
        self._lightning("validate", "validate.yaml", stage, self.output / stage / "model", callbacks)
        with predictions.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def _lightning(self, command: str, config: str, stage: str, model: Path, *options: str) -> None:
        self.run(
            [
                command,
                f"--config={CONFIGS / config}",
                f"--seed_everything={self.seed}",
                f"--model.init_args.model_name_or_path={model}",
                f"--data.init_args.data_root={self.output / 'data'}",
                f"--data.init_args.val_files=[{self.output / 'data' / 'eval.jsonl'}]",
                f"--trainer.default_root_dir={self.output / stage}",
                *options,
            ]
        )

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[None]:
        print(f"\n== {title}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def _summary(after_sft: Answers, after_grpo: Answers, seconds: Mapping[str, float], seed: int) -> DemoSummary:
    def accuracy(answers: Answers, task: str | None = None) -> float:
        right = [answer["accuracy"] for answer in answers if task in (None, answer["task"])]
        return sum(right) / len(right)

    return DemoSummary(
        seed=seed,
        questions=len(after_grpo),
        chance=sum(1 / answer["num_choices"] for answer in after_grpo) / len(after_grpo),
        sft_accuracy=accuracy(after_sft),
        grpo_accuracy=accuracy(after_grpo),
        per_task={
            task: Accuracies(sft_accuracy=accuracy(after_sft, task), grpo_accuracy=accuracy(after_grpo, task))
            for task in sorted({answer["task"] for answer in after_grpo})
        },
        seconds={name: round(value, 1) for name, value in seconds.items()},
    )


def _rendered(summary: DemoSummary, after_sft: Answers, after_grpo: Answers, output: Path) -> str:
    """The table, one answer that GRPO corrected, and where to look next."""
    rows = [("held-out accuracy", "chance", "SFT", "GRPO")]
    for name, found in {"all questions": summary, **summary.per_task}.items():
        rows.append((name, f"{summary.chance:.2f}", f"{found.sft_accuracy:.2f}", f"{found.grpo_accuracy:.2f}"))
    lines = ["", *text_table(rows), ""]
    lines.append("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in summary.seconds.items()))
    later = {answer["problem_id"]: answer for answer in after_grpo}
    pairs = ((before, later[before["problem_id"]]) for before in after_sft)
    corrected = next((pair for pair in pairs if pair[0]["accuracy"] == 0 and pair[1]["accuracy"] == 1), None)
    if corrected is not None:
        before, after = corrected
        lines += [
            "",
            f"question   {before['problem']}  (gold {before['solution']}, {before['path']})",
            f"after SFT  {printable(before['completion'].strip())}",
            f"after GRPO {printable(after['completion'].strip())}",
        ]
    lines += [
        "",
        f"results: {output / 'summary.json'}, {output / 'curves.png'}",
        f"watch:   tensorboard --logdir {output}",
    ]
    return "\n".join(lines)
