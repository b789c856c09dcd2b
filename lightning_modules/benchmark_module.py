"""Benchmarks as a LightningModule: every question answered once, on the disk as it goes, with the proof of how."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from datamodules.benchmark_datamodule import BenchmarkBatch, BenchmarkDataModule, BenchmarkItem, ItemKey
from datamodules.benchmarks import Benchmark
from datamodules.collate import PromptCollator
from datamodules.option_letters import option_letters
from datamodules.sampler import sample_seed
from datamodules.types import EncodedPrompt, PromptBatch, VideoRecord
from lightning_modules import benchmark_manifest as manifests
from lightning_modules.benchmark_manifest import Manifest
from lightning_modules.benchmark_results import headline_names, render_table
from lightning_modules.benchmark_run import BenchmarkRun
from lightning_modules.policy_module import PolicyModule
from lightning_modules.report.write import EXAMPLES, write_report
from lightning_modules.rollouts.choice_scoring import likeliest, option_logprobs
from rewards.answer_format import ANSWER_OPEN, parse_response
from rewards.benchmark_metrics import BREAKDOWNS, BenchmarkMetric
from rewards.benchmark_predictions import Prediction, gold_answer, grade, metric_rows
from rewards.benchmark_scoring import Protocol, predicted_answer
from rewards.types import ProblemType

ChoiceScoring = Literal["generate", "likelihood"]
Outcome = dict[str, Any]
"""What became of an item: the fields of its `Prediction` that are not the record's."""


class BenchmarkModule(PolicyModule):
    """Answers the questions of a `BenchmarkDataModule` in validate and test.

    Args:
        output: run folder: manifest, predictions and results. A run that was interrupted goes on in it.
        protocols: scoring rules, each reported by itself: videorft, official; null takes both.
        choice_scoring: answer multiple choice by what the model writes (generate), or by the likeliest option letter
            (likelihood); other questions are always generated.
        answer_prefix: with likelihood, what stands between the prompt and the letter.
        retry_failed: answer batches with failed items anew, after their media were mended.
        manifest: manifest.json of an earlier run that this one must agree with in model, data and settings.
        report_examples: examples of each benchmark, with their frames, on the page report.html.
        kwargs: the arguments of `PolicyModule`.
    """

    def __init__(
        self,
        output: str,
        protocols: list[Protocol] | None = None,
        choice_scoring: ChoiceScoring = "generate",
        answer_prefix: str = ANSWER_OPEN,
        retry_failed: bool = False,
        manifest: str | None = None,
        report_examples: int = EXAMPLES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output = Path(output)
        self.protocols: list[Protocol] = list(protocols or get_args(Protocol))
        self.choice_scoring: ChoiceScoring = choice_scoring
        self.answer_prefix = answer_prefix
        self.retry_failed = retry_failed
        self.expected_manifest = manifest
        if report_examples < 0:
            raise ValueError(f"report_examples is {report_examples}; give 0 for none, or how many of each benchmark.")
        self.report_examples = report_examples
        self.run_config: dict[str, Any] | None = None
        """The configuration that makes this run, for `--manifest`; the command line fills it in."""
        self.benchmark_metrics = nn.ModuleDict()
        self.run: BenchmarkRun | None = None

    def setup(self, stage: str) -> None:
        data, stage = self.trainer.datamodule, TrainerFn(stage).value
        if stage not in ("validate", "test") or not isinstance(data, BenchmarkDataModule):
            raise ValueError(
                f"BenchmarkModule runs validate and test on a BenchmarkDataModule; this is {stage} on "
                f"{type(data).__name__}. See configs/eval/."
            )
        notes = data.check_records(self._check_record)
        self.benchmark_metrics = nn.ModuleDict(
            {
                f"{name}/{protocol}": BenchmarkMetric(name, protocol)
                for name in data.benchmarks
                for protocol in self.protocols
            }
        )
        self.run = None
        if self.trainer.fast_dev_run:
            rank_zero_info("BenchmarkModule writes nothing in a fast_dev_run.")
            return
        strategy = self.trainer.strategy
        manifest = strategy.broadcast(self._manifest(data) if self.trainer.is_global_zero else None)
        if self.expected_manifest is not None:
            self._check_replay(manifest)
        self.run = BenchmarkRun(self.output, manifest, data, self.protocols, notes)
        self.run.check(retry_failed=self.retry_failed)
        strategy.barrier("manifests compared")
        if self.trainer.is_global_zero:
            self.run.prepare(retry_failed=self.retry_failed)
        strategy.barrier("earlier predictions gathered")
        answered = self.run.journal.answered()
        data.skip(frozenset(answered))
        if self.trainer.is_global_zero:
            self._count(answered.values())
        self.run.journal.open(self.trainer.global_rank)
        if answered:
            rank_zero_info(f"{len(answered):,} of {len(data.keys()):,} questions are answered already.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        raise ValueError(
            "Benchmarks take a model folder, whose files the manifest names, and no ckpt_path. Make one with `python "
            "cli.py export --ckpt_path CHECKPOINT --output FOLDER` and give it as model.init_args.model_name_or_path."
        )

    def on_before_batch_transfer(self, batch: BenchmarkBatch, dataloader_idx: int) -> BenchmarkBatch:
        return batch if batch.prompts is None else replace(batch, prompts=self.policy.locate(batch.prompts))

    def _answer(self, batch: BenchmarkBatch) -> list[dict[str, Any]]:
        outcomes = self._outcomes(batch)
        predictions = [self._prediction(item, outcomes[item.key]) for item in batch.items]
        if self.run is not None and predictions:
            self.run.journal.append(predictions)
        self._count(predictions)
        return [asdict(prediction) for prediction in predictions]

    def _outcomes(self, batch: BenchmarkBatch) -> dict[ItemKey, Outcome]:
        outcomes: dict[ItemKey, Outcome] = {}
        written, chosen, letters = [], [], []
        for item in batch.items:
            if item.failure is not None:
                outcomes[item.key] = {"failure": item.failure}
            elif self.choice_scoring == "generate" or item.record.problem_type is not ProblemType.MULTIPLE_CHOICE:
                written.append(item)
            else:
                try:
                    letters.append(_offered_letters(item.record))
                except ValueError as error:
                    outcomes[item.key] = {"failure": str(error)}
                    continue
                chosen.append(item)
        return outcomes | self._written(written, batch) | self._chosen(chosen, letters)

    def _written(self, items: Sequence[BenchmarkItem], batch: BenchmarkBatch) -> dict[ItemKey, Outcome]:
        """Generated answers."""
        if not items:
            return {}
        prompts = batch.prompts
        if len(items) < len(prompts):
            prompts = self._located([item.prompt for item in items])
        seeds = [sample_seed(self.seed, 0, f"{item.key.benchmark}/{item.record.problem_id}") for item in items]
        groups = self.engine.generate(prompts, self.evaluation, group_size=1, seeds=seeds)
        outcomes = {}
        for item, group in zip(items, groups, strict=True):
            (completion,) = group.completions
            outcomes[item.key] = _seen(item.prompt) | {
                "completion": completion.text,
                "answer": predicted_answer(completion.text),
                "well_formed": parse_response(completion.text).well_formed,
                "completion_tokens": len(completion.token_ids),
                "truncated": completion.truncated,
            }
        return outcomes

    def _chosen(self, items: Sequence[BenchmarkItem], letters: Sequence[Sequence[str]]) -> dict[ItemKey, Outcome]:
        """Answers by the likelihood of the option letters."""
        if not items:
            return {}
        scored = option_logprobs(
            self.policy,
            [item.prompt for item in items],
            letters,
            answer_prefix=self.answer_prefix,
            device=self.device,
        )
        return {
            item.key: _seen(item.prompt) | {"answer": likeliest(logprobs), "option_logprobs": logprobs}
            for item, logprobs in zip(items, scored, strict=True)
        }

    def _located(self, prompts: Sequence[EncodedPrompt]) -> PromptBatch:
        collate = PromptCollator(pad_token_id=self.policy.tokenizer.pad_token_id)
        return self.policy.locate(collate(prompts)).to(self.device)

    def _prediction(self, item: BenchmarkItem, outcome: Outcome) -> Prediction:
        record, benchmark = item.record, item.key.benchmark
        gold = gold_answer(record.solution)
        grades = grade(
            benchmark,
            self.protocols,
            problem_type=record.problem_type,
            question_type=_question_type(record),
            answer=outcome.get("answer"),
            gold=gold,
        )
        fields = BREAKDOWNS[benchmark]
        return Prediction(
            benchmark=benchmark,
            index=item.key.index,
            problem_id=record.problem_id,
            problem_type=record.problem_type.value,
            data_type=record.data_type,
            question=record.problem,
            options=list(record.options),
            gold=gold,
            path=record.path,
            start=record.extra.get("start"),
            end=record.extra.get("end"),
            breakdown={name: str(record.extra[name]) for name in fields if record.extra.get(name) is not None},
            extra=dict(record.extra),
            scores=grades.scores,
            ungraded=grades.ungraded,
            **outcome,
        )

    def _count(self, predictions: Iterable[Prediction]) -> None:
        for prediction in predictions:
            for protocol in self.protocols:
                rows = metric_rows([prediction], protocol)
                if rows:
                    self.benchmark_metrics[f"{prediction.benchmark}/{protocol}"].update(rows)

    def _log_answers(self, stage: str) -> None:
        """Log all means, and, when all questions are answered, write and show the results."""
        for name, metric in self.benchmark_metrics.items():
            values = {mean: float(value) for mean, value in metric.compute().items()}
            headline = [mean for mean in headline_names(metric.benchmark, metric.protocol) if mean in values]
            for mean in headline:
                self.log(f"{stage}/{name}/{mean}", values.pop(mean))
            for logger in self.loggers:
                logger.log_metrics({f"{stage}/{name}/{mean}": value for mean, value in values.items()}, step=0)
        if self.run is None:
            return
        self.run.journal.close()
        self.trainer.strategy.barrier("questions answered")
        if self.trainer.is_global_zero:
            results = self.run.publish()
            if results is None:
                rank_zero_info(f"Not all questions are answered; the same command goes on from {self.output}.")
            else:
                report = write_report(self.output, examples=self.report_examples)
                rank_zero_info(
                    f"{render_table(results)}\nPredictions and results: {self.output}\nReport: {report.html}"
                )
        self.trainer.strategy.barrier("results written")

    def _check_record(self, benchmark: Benchmark, record: VideoRecord) -> None:
        """Find before the first answer what could not be scored after it."""
        grade(
            benchmark.name,
            self.protocols,
            problem_type=record.problem_type,
            question_type=_question_type(record),
            answer=None,
            gold=gold_answer(record.solution),
        )

    def _manifest(self, data: BenchmarkDataModule) -> Manifest:
        settings = {
            **data.settings(),
            "decoding": asdict(self.evaluation),
            "choice_scoring": self.choice_scoring,
            "answer_prefix": self.answer_prefix,
            "protocols": self.protocols,
            "seed": self.seed,
            "dtype": self.dtype_name,
            "precision": str(self.trainer.precision),
            "attn_implementation": self.attn_implementation,
            "quantisation": self.quantisation,
            "lora": None if self.lora is None else asdict(self.lora),
        }
        return {
            "version": manifests.VERSION,
            "identity": {
                "model": manifests.model_files(self.model_name_or_path),
                "data": manifests.data_identity(data),
                "settings": settings,
            },
            "versions": manifests.versions(),
            "environment": {
                "device": str(self.trainer.strategy.root_device),
                "ranks": self.trainer.world_size,
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
            "paths": {"model": self.model_name_or_path, "data_root": data.data_root, "files": data.paths},
            "run": self.run_config,
        }

    def _check_replay(self, manifest: Manifest) -> None:
        expected = manifests.read_manifest(self.expected_manifest)
        manifests.refuse_differences(
            expected,
            manifest,
            title=f"This run is not the one of {self.expected_manifest}:",
            remedy="Give the same model and data files, and no other settings; paths may differ.",
        )
        for line in manifests.differences(expected["versions"], manifest["versions"]):
            rank_zero_warn(f"Another version than in {self.expected_manifest}: {line}; scores may differ by rounding.")


def _seen(prompt: EncodedPrompt) -> Outcome:
    frames = None if prompt.frames is None else len(prompt.frames)
    return {"num_frames": frames, "prompt_tokens": len(prompt.input_ids)}


def _question_type(record: VideoRecord) -> str | None:
    return record.extra.get("original_question_type")


def _offered_letters(record: VideoRecord) -> tuple[str, ...]:
    letters, gold = option_letters(record), gold_answer(record.solution)
    if gold not in letters:
        raise ValueError(
            f"{record.where}: the right answer {gold!r} is none of the letters {', '.join(letters)}, so scoring them "
            "cannot give it. Write the letter into the record, or generate answers instead."
        )
    return letters
