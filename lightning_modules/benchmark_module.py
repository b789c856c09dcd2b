"""Benchmarks as a LightningModule: every question answered once, on the disk as it goes, with the proof of how."""

from __future__ import annotations

import datetime
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.evaluation.benchmark_datamodule import BenchmarkBatch, BenchmarkDataModule
from datamodules.video.types import printable
from lightning_modules.evaluation import manifest as manifests
from lightning_modules.evaluation.answers import Answerer, ChoiceScoring, prediction_of
from lightning_modules.evaluation.manifest import Environment, Identity, Manifest, Paths, Settings
from lightning_modules.evaluation.report.write import EXAMPLES, write_report
from lightning_modules.evaluation.results import BenchmarkResults, benchmark_results, logged_values, render_table
from lightning_modules.evaluation.run import BenchmarkRun
from lightning_modules.policy_module import PolicyModule
from lightning_modules.training.typed_lightning import datamodule_of, from_rank_zero, is_fast_dev_run
from rewards.answer_format import ANSWER_OPEN
from rewards.errors import UserError
from rewards.evaluation.predictions import Prediction
from rewards.evaluation.scoring import ScoringRule


class BenchmarkModule(PolicyModule):
    """Answers the questions of a `BenchmarkDataModule` in validate and test.

    Args:
        output: run folder: manifest, predictions and results. A run that was interrupted goes on in it.
        scoring_rules: each is reported by itself: videorft, official; null takes both.
        choice_scoring: answer multiple choice by what the model writes (generate), or by the likeliest option letter
            (likelihood); other questions are always generated.
        answer_prefix: with likelihood, what stands between the prompt and the letter.
        retry_failed: answer batches with failed items anew, after their media were repaired.
        manifest: manifest.json of an earlier run that this one must agree with in model, data and settings.
        report_examples: examples of each benchmark, with their frames, on the page report.html.
        kwargs: the arguments of `PolicyModule`.
    """

    def __init__(
        self,
        output: str,
        scoring_rules: list[ScoringRule] | None = None,
        choice_scoring: ChoiceScoring = "generate",
        answer_prefix: str = ANSWER_OPEN,
        retry_failed: bool = False,
        manifest: str | None = None,
        report_examples: int = EXAMPLES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output = Path(output)
        self.scoring_rules: list[ScoringRule] = list(scoring_rules or get_args(ScoringRule))
        self.choice_scoring: ChoiceScoring = choice_scoring
        self.answer_prefix = answer_prefix
        self.retry_failed = retry_failed
        self.expected_manifest = manifest
        if report_examples < 0:
            raise UserError(f"report_examples is {report_examples}; give 0 for none, or how many of each benchmark.")
        self.report_examples = report_examples
        self.run_config: dict[str, Any] | None = None
        """The configuration that makes this run, for `--manifest`; the command line fills it in."""
        self.run: BenchmarkRun | None = None
        self.unwritten: list[Prediction] = []
        """This rank's predictions of a fast_dev_run, which has no run folder."""
        self.notes: dict[str, list[str]] = {}
        """Benchmark -> what a reader of its scores must know about this run's data."""

    def setup(self, stage: str) -> None:
        data, stage = datamodule_of(self.trainer), TrainerFn(stage).value
        if stage not in ("validate", "test") or not isinstance(data, BenchmarkDataModule):
            raise UserError(
                f"BenchmarkModule runs validate and test on a BenchmarkDataModule; this is {stage} on "
                f"{type(data).__name__}. See configs/eval/."
            )
        self.notes = data.check_records(self.scoring_rules)
        self.run, self.unwritten = None, []
        if is_fast_dev_run(self.trainer):
            rank_zero_info("BenchmarkModule writes nothing in a fast_dev_run.")
            return
        strategy = self.trainer.strategy
        manifest = from_rank_zero(strategy, lambda: self._manifest(data))
        if self.expected_manifest is not None:
            expected = manifests.read_manifest(self.expected_manifest)
            title = f"This run is not the one of {self.expected_manifest}:"
            remedy = "Give the same model and data files, and no other settings; paths may differ."
            for line in manifests.compare_manifests(expected, manifest, title=title, remedy=remedy):
                rank_zero_warn(
                    f"Another version than in the manifest: {printable(line)}; scores may differ by rounding."
                )
        self.run = BenchmarkRun(folder=self.output, manifest=manifest, data=data, notes=self.notes)
        self.run.check(retry_failed=self.retry_failed)
        strategy.barrier("manifests compared")
        if self.trainer.is_global_zero:
            self.run.prepare(retry_failed=self.retry_failed)
        strategy.barrier("earlier predictions gathered")
        answered = self.run.journal.answered()
        data.skip(frozenset(answered))
        self.run.journal.open(self.trainer.global_rank)
        if answered:
            rank_zero_info(f"{len(answered):,} of {len(data.keys()):,} questions are answered already.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        raise UserError(
            "Benchmarks take a model folder, whose files the manifest names, and no ckpt_path. Make one with `python "
            "cli.py export --ckpt_path CHECKPOINT --output FOLDER` and give it as model.init_args.model_name_or_path."
        )

    def on_before_batch_transfer(self, batch: BenchmarkBatch, dataloader_idx: int) -> BenchmarkBatch:
        return batch if batch.prompts is None else replace(batch, prompts=self.policy.with_positions(batch.prompts))

    def _answer(self, batch: BenchmarkBatch) -> list[dict[str, Any]]:
        outcomes = self._answerer().outcomes(batch)
        data = datamodule_of(self.trainer)
        assert isinstance(data, BenchmarkDataModule), "checked in setup"
        predictions = [
            prediction_of(item, outcomes[item.key], data.benchmarks[item.key.benchmark], self.scoring_rules)
            for item in batch.items
        ]
        if self.run is None:
            self.unwritten += predictions
        else:
            self.run.journal.append(prediction.to_line() for prediction in predictions)
        return [asdict(prediction) for prediction in predictions]

    def _answerer(self) -> Answerer:
        return Answerer(
            policy=self.policy,
            engine=self.engine,
            sampling=self.evaluation,
            choice_scoring=self.choice_scoring,
            answer_prefix=self.answer_prefix,
            seed=self.seed,
            device=self.device,
        )

    def _log_answers(self, stage: str) -> None:
        """Log all means, and, when all questions are answered, write and show the results."""
        if self.run is None:
            self._log(stage, benchmark_results(self.unwritten, self.scoring_rules, self.notes))
            return
        strategy = self.trainer.strategy
        self.run.journal.close()
        strategy.barrier("questions answered")
        results, complete = from_rank_zero(strategy, self.run.publish)
        self._log(stage, results)
        if not complete:
            rank_zero_info(f"Not all questions are answered; the same command goes on from {self.output}.")
        elif self.trainer.is_global_zero:
            report = write_report(str(self.output), examples=self.report_examples)
            rank_zero_info(f"{render_table(results)}\nPredictions and results: {self.output}\nReport: {report.html}")
        strategy.barrier("report written")

    def _log(self, stage: str, results: dict[str, BenchmarkResults]) -> None:
        for benchmark, of_benchmark in results.items():
            for rule, of_rule in of_benchmark.scoring_rules.items():
                values = {f"{stage}/{benchmark}/{rule}/{name}": value for name, value in logged_values(of_rule).items()}
                for name in of_rule.headline:
                    tag = f"{stage}/{benchmark}/{rule}/{name}"
                    if tag in values:
                        self.log(tag, values.pop(tag))
                for logger in self.loggers:
                    logger.log_metrics(values, step=0)

    def _manifest(self, data: BenchmarkDataModule) -> Manifest:
        settings = Settings(
            benchmarks=list(data.benchmarks),
            limit=data.limit,
            frames=data.eval_frames,
            reader=data.reader,
            seconds_per_patch=data.seconds_per_patch,
            max_prompt_tokens=data.max_prompt_tokens,
            batch_size=data.eval_batch_size,
            prompt=data.prompt.settings(),
            decoding=self.evaluation,
            choice_scoring=self.choice_scoring,
            answer_prefix=self.answer_prefix,
            scoring_rules=self.scoring_rules,
            seed=self.seed,
            dtype=self.dtype_name,
            precision=str(self.trainer.precision),
            attn_implementation=self.attn_implementation,
            quantization=self.quantization,
            lora=self.lora,
        )
        return Manifest(
            identity=Identity(
                model=manifests.model_files(self.model_name_or_path),
                data=manifests.data_identity(data),
                settings=settings,
            ),
            versions=manifests.versions(),
            environment=Environment(
                device=str(self.trainer.strategy.root_device),
                ranks=self.trainer.world_size,
                started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ),
            paths=Paths(model=self.model_name_or_path, data_root=data.data_root, files=data.paths),
            run=self.run_config,
        )
