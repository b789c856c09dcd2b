"""Supervised fine-tuning on chains of thought."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from datamodules.types import SFTBatch
from lightning_modules.functional.masking import WeightedMean
from lightning_modules.policy_module import PolicyModule
from lightning_modules.training.step_metrics import StepMetrics
from lightning_modules.training.strategies import whole_norm

LOSS_SCALE = 2.0**-10
"""The same for every batch, and about one over the tokens of a batch, so that half-precision gradients stay in range. A
power of 2 rounds nothing."""


class SFTModule(PolicyModule):
    """Minimizes the mean negative log-probability of the assistant's tokens (automatic optimization).

    The mean is that over all tokens of an optimizer step, however they are spread over ranks and over the
    `accumulate_grad_batches` of the trainer: every token weighs the same. Trains on `SFTBatch`es (data.train_format:
    sft) and validates on prompts.

    Args:
        kwargs: the arguments of `PolicyModule`.
    """

    train_format = "sft"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._begin_step()

    def on_train_epoch_start(self) -> None:
        self._begin_step()  # a run that was stopped may have left half a step

    def training_step(self, batch: SFTBatch, batch_idx: int) -> Tensor:
        """The sum over tokens of their loss, scaled; `on_before_optimizer_step` makes the step's gradient a mean."""
        statistics = self.policy.target_statistics(batch)
        loss = -statistics.logprobs.sum()
        count = torch.tensor(len(statistics.logprobs), device=loss.device)
        self._metrics.add_mean("train/loss", WeightedMean(total=loss.detach(), weight=count))
        self._metrics.add_mean("train/token_accuracy", WeightedMean(total=statistics.is_top.sum(), weight=count))
        self._metrics.add_count("target_tokens", count)
        self._metrics.add_count("tokens", batch.attention_mask.sum())
        self.guard.watch_sft(loss, batch)
        return loss * LOSS_SCALE

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._step = self._metrics.reduced(self.trainer.strategy)
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        # Here gradients are those of the loss above, divided by the micro-batches of a full step, averaged over ranks.
        shares = self.trainer.accumulate_grad_batches * self.trainer.world_size
        factor = shares / (LOSS_SCALE * max(1.0, self._step.pop("target_tokens")))
        torch._foreach_mul_(gradients, factor)
        norm = whole_norm(torch.nn.utils.get_total_norm(gradients)).item()
        self._step["train/grad_norm"] = norm
        if not self.guard.allows(self, grad_norm=norm):
            optimizer.zero_grad()  # to none at all: the optimizer then leaves weights and its own state as they are

    def on_train_batch_end(self, outputs: Any, batch: SFTBatch, batch_idx: int) -> None:
        for phase, value in self.timer.end_step(rest="update").items():
            self._seconds[phase] += value
        if self._step is None:  # more micro-batches follow
            return
        values, seconds = self._step, self._seconds
        self._begin_step()
        self.log("train/tokens_per_second", values.pop("tokens") / seconds["step"])
        loss = values.pop("train/loss")
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/perplexity", torch.tensor(loss).exp())
        self.log("train/lr", self.learning_rate)
        self.log_dict(values)
        self.log_skipped()
        self.log_seconds(seconds)

    def _begin_step(self) -> None:
        self._metrics = StepMetrics()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        """Wall time of the step's micro-batches so far, by phase."""
        self._step: dict[str, float] | None = None
        """What to log of the step that was just taken."""
