"""What fine-tuning, GRPO and evaluation share: the policy, its optimizer, and validation by generating answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.distributed.fsdp import FSDPModule

from datamodules.sampler import sample_seed
from datamodules.types import PromptBatch, SFTBatch
from datamodules.video_datamodule import TrainFormat, VideoDataModule
from lightning_modules.callbacks.last_step import LastStep
from lightning_modules.policy import adapters
from lightning_modules.policy.adapters import AdapterConfig, Quantization
from lightning_modules.policy.export import write_pretrained
from lightning_modules.policy.loading import AttentionImplementation, Dtype, load_policy
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.sharding import gathered
from lightning_modules.policy.trainable import Part, trainable_table
from lightning_modules.rollouts.sample import RolloutSample
from lightning_modules.rollouts.scoring import answer_sample, scored_answer
from lightning_modules.rollouts.transformers_engine import TransformersEngine
from lightning_modules.rollouts.types import RolloutEngine, RolloutGroup, SamplingConfig
from lightning_modules.training.answer_metrics import AnswerMetrics
from lightning_modules.training.failure_notes import FailureNotes
from lightning_modules.training.nonfinite import SKIPPED_KEY, GuardConfig, NonFiniteGuard
from lightning_modules.training.optim import OptimizerConfig, build_optimizer, build_scheduler
from lightning_modules.training.phase_timer import PhaseTimer
from lightning_modules.training.precision import rounding_note, weights_dtype
from lightning_modules.training.strategies import FSDP2Strategy
from lightning_modules.training.typed_lightning import datamodule_of
from rewards.errors import UserError

EVALUATION_SAMPLING = SamplingConfig(temperature=0.01, top_p=0.001)
"""Decoding of the published evaluation."""


class PolicyModule(L.LightningModule):
    """Base of the modules that train or evaluate a policy.

    Args:
        model_name_or_path: Hugging Face folder or name of a Qwen2-VL or Qwen2.5-VL checkpoint.
        dtype: of the weights; trainer.precision bf16-true overrules it with bfloat16.
        attn_implementation: of the vision tower; "auto" takes flash attention 2 where there is CUDA and the package.
        gradient_checkpointing: recompute activations in the backward.
        logprob_chunk_size: rows of logits that exist at a time.
        freeze: parts that do not train: vision_tower, merger, embeddings, language_model; null trains everything.
        lora: train low-rank adapters of the language model and nothing else; null trains the weights themselves.
        quantization: "nf4" keeps the language model's own weights in 4 bits (QLoRA); needs lora.
        optimizer: AdamW and its schedule.
        evaluation: decoding for validate, test and predict.
        engine: what draws completions: a class of `RolloutEngine`, with its settings.
        seed: root of all sampling seeds.
        guard: what happens to a step whose loss, gradient norm or rewards are not finite.
    """

    train_format: ClassVar[TrainFormat | None] = None
    """What `VideoDataModule.train_format` must be in fit."""
    policy: Policy
    """Made by `configure_model`, as is the engine."""
    engine: RolloutEngine
    steps_per_batch: int = 1
    """Optimizer steps of a batch (of `accumulate_grad_batches` of them); trainer.max_steps counts those."""

    def __init__(
        self,
        model_name_or_path: str,
        dtype: Dtype = "float32",
        attn_implementation: AttentionImplementation = "auto",
        gradient_checkpointing: bool = False,
        logprob_chunk_size: int = 512,
        freeze: list[Part] | None = None,
        lora: AdapterConfig | None = None,
        quantization: Quantization | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen, and its fields show in --help
        evaluation: SamplingConfig = EVALUATION_SAMPLING,
        engine: Callable[[Policy], RolloutEngine] = TransformersEngine,
        seed: int = 0,
        guard: GuardConfig = GuardConfig(),  # noqa: B008 - likewise
    ) -> None:
        super().__init__()
        self.model_name_or_path = model_name_or_path
        self.dtype_name: Dtype = dtype
        self.attn_implementation: AttentionImplementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.logprob_chunk_size = logprob_chunk_size
        self.freeze_parts = freeze or []
        self.lora = lora
        self.quantization: Quantization | None = quantization
        self.strict_loading = lora is None  # checkpoints hold the adapters alone, see on_save_checkpoint
        self.optimizer_config = optimizer
        self.evaluation = evaluation
        self.seed = seed
        self.make_engine = engine
        self.last_rollouts: RolloutSample | None = None
        self.answer_metrics = AnswerMetrics()
        self.timer = PhaseTimer()
        self.guard = NonFiniteGuard(guard)

    def setup(self, stage: str) -> None:
        given = getattr(datamodule_of(self.trainer), "train_format", self.train_format)
        if stage == "fit" and given != self.train_format:
            raise UserError(
                f"{type(self).__name__} does not train on data.init_args.train_format: {given}; "
                f"set data.init_args.train_format: {self.train_format}."
            )

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.policy = self.sharded(self.load_policy())
            self.engine = self.make_engine(self.policy)

    def configure_callbacks(self) -> list[Callback]:
        return [FailureNotes(), LastStep()]

    def sharded(self, policy: Policy) -> Policy:
        """The policy, sharded in place where the trainer's strategy shards."""
        strategy = None if self._trainer is None else self._trainer.strategy
        return strategy.shard(policy) if isinstance(strategy, FSDP2Strategy) else policy

    def load_policy(self) -> Policy:
        """A fresh policy from the checkpoint this module was given.

        Raises:
            UserError: as `load_policy`; or the trainer's precision would round more than the weights.
        """
        plugin = None if self._trainer is None else self.trainer.precision_plugin
        return load_policy(
            self.model_name_or_path,
            dtype=weights_dtype(plugin, self.dtype_name),
            attn_implementation=self.attn_implementation,
            gradient_checkpointing=self.gradient_checkpointing,
            logprob_chunk_size=self.logprob_chunk_size,
            freeze=self.freeze_parts,
            lora=self.lora,
            quantization=self.quantization,
        )

    def on_fit_start(self) -> None:
        rank_zero_info(f"Parameters:\n{trainable_table(self.policy)}")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, PromptBatch | SFTBatch):
            return batch
        if (data := self._video_data()) is not None:
            data.note_bad_records(batch)
        return self.policy.with_positions(batch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Lightning forgets to count the epoch that begins after a resume from the end of the one before. Its next
        # checkpoint would name the wrong epoch, and a resume from that one would repeat a batch.
        epochs = self.trainer.fit_loop.epoch_progress
        # Lightning declares a base class of the tracker that is there.
        if epochs.current.ready == epochs.current.processed:  # pyright: ignore[reportAttributeAccessIssue]
            epochs.increment_ready()
            epochs.increment_started()
        # Not when the batch was noted: ContinuedRun purges this step of an earlier start only after that.
        if (data := self._video_data()) is not None:
            data.log_bad_records()
        self.timer.begin_step()

    def on_validation_epoch_end(self) -> None:
        self._log_answers("val")

    def on_validation_end(self) -> None:
        self.timer.pause()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:  # rows, where Lightning declares tensors
        return self._answer(batch)

    test_step = predict_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._log_answers("test")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = build_optimizer(self.policy.parameters(), self.optimizer_config)
        if note := rounding_note(optimizer):
            rank_zero_warn(note)
        scheduler = build_scheduler(optimizer, self.optimizer_config, self.schedule_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[SKIPPED_KEY] = self.guard.skipped
        if self.lora is not None:
            adapters.drop_base_from_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.skipped = checkpoint.get(SKIPPED_KEY, 0)  # a run from before the guard has skipped none
        if self.lora is not None:
            adapters.check_checkpoint(checkpoint, self.policy.model)

    def total_optimizer_steps(self) -> int:
        """Optimizer steps of the whole training, -1 if it has no end."""
        limit, batches = self.trainer.max_steps, self.trainer.estimated_stepping_batches
        if batches in (float("inf"), limit):
            return limit
        steps = int(batches) * self.steps_per_batch
        return min(steps, limit) if limit > 0 else steps

    def schedule_steps(self) -> int:
        """Optimizer steps that the schedule of the learning rate spans, -1 if it has no end."""
        steps, trainer = self.total_optimizer_steps(), self.trainer  # which also counts the batches of an epoch
        if self.optimizer_config.schedule_horizon == "training":
            return steps
        if trainer.max_epochs in (None, -1) or math.isinf(trainer.num_training_batches):
            return -1
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return per_epoch * trainer.max_epochs * self.steps_per_batch

    def export_pretrained(self, path: Path) -> None:
        """Write weights, processor and generation settings as a Hugging Face folder; rank 0 writes, all ranks call."""
        weights = gathered(self.policy.model.state_dict()) if isinstance(self.policy, FSDPModule) else None
        if self.global_rank == 0:
            write_pretrained(self.policy, path, weights)

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    def log_skipped(self) -> None:
        """Log how many steps the run has skipped, where it may skip any."""
        if self.guard.config.on_nonfinite == "skip":
            self.log("train/skipped_steps", float(self.guard.skipped))

    def log_seconds(self, seconds: dict[str, float]) -> None:
        """Log the seconds per phase of rank 0 and, of several ranks, those of the slowest in each phase."""
        self.log_dict({f"seconds/{phase}": value for phase, value in seconds.items()})
        if self.trainer.world_size > 1:
            phases = sorted(seconds)
            mine = torch.tensor([seconds[phase] for phase in phases], device=self.device)
            slowest = self.trainer.strategy.reduce(mine, reduce_op="max").tolist()
            self.log_dict(
                {f"seconds/slowest_rank/{phase}": value for phase, value in zip(phases, slowest, strict=True)}
            )

    def answer_groups(self, batch: PromptBatch) -> list[RolloutGroup]:
        """One evaluation answer per prompt."""
        seeds = [sample_seed(self.seed, 0, prompt.record.problem_id) for prompt in batch.prompts]
        return self.engine.generate(batch, self.evaluation, group_size=1, seeds=seeds)

    def _video_data(self) -> VideoDataModule | None:
        data = None if self._trainer is None else datamodule_of(self.trainer)
        return data if isinstance(data, VideoDataModule) else None

    def _answer(self, batch: Any) -> list[dict[str, Any]]:
        groups = self.answer_groups(batch)
        rows = [scored_answer(group, group.completions[0]) for group in groups]
        self.last_rollouts = answer_sample(groups, rows)
        for group, row in zip(groups, rows, strict=True):
            names = ("accuracy", "format", "completion_tokens", "truncated")
            self.answer_metrics.update({name: float(row[name]) for name in names}, group.prompt.record.problem_type)
        return rows

    def _log_answers(self, stage: str) -> None:
        values = self.answer_metrics.compute()
        self.answer_metrics.reset()
        self.last_rollouts = None  # or training would show evaluation's as its own
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "accuracy")
