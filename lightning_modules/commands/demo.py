"""The demo: a tiny video language model learns to reason, through the same command line as a run at full size."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from datamodules.atomic_file import write_atomically
from datamodules.synthetic.dataset import SyntheticDataset, write_dataset
from lightning_modules.pictures.curves import plot_curves
from lightning_modules.policy.tiny import write_tiny_model

CONFIGS = Path(__file__).parents[2] / "configs" / "demo"
TEACHER_ERROR = 0.6
"""How often the teacher errs where it is prone to; SFT imitates that, GRPO has to mend it."""
Rows = Sequence[Mapping[str, Any]]


@dataclass(kw_only=True)
class Demo:
    """Runs SFT, GRPO and validation of the tiny model and sums them up.

    Args:
        output: folder of model, clips, logs and results; what an earlier demo trained there is replaced.
        seed: of weights, data and sampling.
        run: executes one LightningCLI command line.
        stream: where the table is printed.
    """

    output: Path
    seed: int
    run: Callable[[Sequence[str]], None]
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    def run_all(self) -> dict[str, Any]:
        """Train, validate, write `summary.json` and `curves.png`, print the table.

        Returns:
            The summary.
        """
        started = time.perf_counter()
        for stage in ("sft", "grpo"):
            shutil.rmtree(self.output / stage, ignore_errors=True)
        with self._stage("model", "Building a Qwen2.5-VL of half a million parameters"):
            write_tiny_model(self.output / "tiny_model", seed=self.seed)
        with self._stage("data", "Drawing clips with questions"):
            data = write_dataset(self.output / "data", seed=self.seed, teacher_error=TEACHER_ERROR)
        with self._stage("sft", "Fine-tuning on the chains of thought of an imperfect teacher"):
            self._fit("sft", self.output / "tiny_model", data.sft, data)
        with self._stage("validation", "Asking the fine-tuned model held-out questions"):
            after_sft = self._validate("sft", data)
        with self._stage("grpo", "GRPO: rewarded for right answers alone"):
            self._fit("grpo", self.output / "sft" / "model", data.rl, data)
        with self._stage("validation", "Asking the trained model the same questions"):
            after_grpo = self._validate("grpo", data)
        self.seconds["total"] = time.perf_counter() - started

        summary = summarize(after_sft, after_grpo, self.seconds, self.seed)
        write_atomically(self.output / "summary.json", json.dumps(summary, indent=2) + "\n")
        plot_curves(
            self.output / "sft" / "logs",
            self.output / "grpo" / "logs",
            self.output / "curves.png",
            chance=summary["chance"],
        )
        print(render(summary, after_sft, after_grpo, self.output), file=self.stream)
        return summary

    def _fit(self, stage: str, model: Path, train_file: Path, data: SyntheticDataset) -> None:
        folder = self.output / stage
        self.run(
            [
                "fit",
                f"--config={CONFIGS / f'{stage}.yaml'}",
                *self._common(model, data),
                f"--data.init_args.train_files=[{train_file}]",
                f"--trainer.default_root_dir={folder}",
                f"--trainer.logger.init_args.save_dir={folder}",
            ]
        )

    def _validate(self, stage: str, data: SyntheticDataset) -> Rows:
        predictions = self.output / stage / "predictions.jsonl"
        writer = {
            "class_path": "lightning_modules.callbacks.PredictionWriter",
            "init_args": {"output": str(predictions)},
        }
        self.run(
            [
                "validate",
                f"--config={CONFIGS / 'validate.yaml'}",
                *self._common(self.output / stage / "model", data),
                f"--trainer.default_root_dir={self.output / stage}",
                f"--trainer.callbacks={json.dumps([writer])}",
            ]
        )
        with predictions.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def _common(self, model: Path, data: SyntheticDataset) -> list[str]:
        return [
            f"--seed_everything={self.seed}",
            f"--model.init_args.model_name_or_path={model}",
            f"--data.init_args.data_root={data.data_root}",
            f"--data.init_args.val_files=[{data.eval}]",
        ]

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[None]:
        print(f"\n== {title}", file=self.stream, flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def summarize(after_sft: Rows, after_grpo: Rows, seconds: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Accuracies of both stages beside what guessing among the answers of each question would give."""
    return {
        "seed": seed,
        "questions": len(after_grpo),
        "chance": sum(1 / row["num_choices"] for row in after_grpo) / len(after_grpo),
        "sft_accuracy": _accuracy(after_sft),
        "grpo_accuracy": _accuracy(after_grpo),
        "per_task": {
            task: {"sft_accuracy": _accuracy(before), "grpo_accuracy": _accuracy(after)}
            for (task, before), after in zip(_by_task(after_sft).items(), _by_task(after_grpo).values(), strict=True)
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def render(summary: Mapping[str, Any], after_sft: Rows, after_grpo: Rows, output: Path) -> str:
    """The table, one mended answer, and where to look next."""
    lines = ["", f"{'held-out accuracy':<22}{'chance':>8}{'SFT':>8}{'GRPO':>8}"]
    rows = {"all questions": summary, **summary["per_task"]}
    for name, row in rows.items():
        lines.append(f"{name:<22}{summary['chance']:>8.2f}{row['sft_accuracy']:>8.2f}{row['grpo_accuracy']:>8.2f}")
    times = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items())
    lines += ["", f"seconds: {times}"]
    mended = _mended(after_sft, after_grpo)
    if mended is not None:
        before, after = mended
        lines += [
            "",
            f"question   {before['problem']}  (gold {before['solution']}, {before['path']})",
            f"after SFT  {before['completion'].strip()}",
            f"after GRPO {after['completion'].strip()}",
        ]
    lines += [
        "",
        f"results: {output / 'summary.json'}, {output / 'curves.png'}",
        f"watch:   tensorboard --logdir {output}",
    ]
    return "\n".join(lines)


def _mended(after_sft: Rows, after_grpo: Rows) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The first question that SFT answered wrong and GRPO right."""
    later = {row["problem_id"]: row for row in after_grpo}
    pairs = ((row, later[row["problem_id"]]) for row in after_sft)
    return next((pair for pair in pairs if pair[0]["accuracy"] == 0 and pair[1]["accuracy"] == 1), None)


def _accuracy(rows: Rows) -> float:
    return sum(row["accuracy"] for row in rows) / len(rows)


def _by_task(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    tasks = defaultdict(list)
    for row in rows:
        tasks[row["task"]].append(row)
    return dict(sorted(tasks.items()))
