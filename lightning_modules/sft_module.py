"""Supervised fine-tuning on chains of thought."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from datamodules.types import SFTBatch
from lightning_modules.policy_module import PolicyModule
from lightning_modules.training.answer_metrics import TokenMetrics
from lightning_modules.training.strategies import whole_norm


class SFTModule(PolicyModule):
    """Minimizes the mean negative log-probability of the assistant's tokens (automatic optimization).

    Trains on `SFTBatch`es (data.train_format: sft) and validates on prompts.

    Args:
        kwargs: the arguments of `PolicyModule`.
    """

    train_format = "sft"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.token_metrics = TokenMetrics()

    def training_step(self, batch: SFTBatch, batch_idx: int) -> Tensor:
        statistics = self.policy.target_statistics(batch)
        self.token_metrics.update(statistics)
        loss = -statistics.logprobs.sum() / self._tokens_per_rank(statistics.logprobs)
        self.guard.watch_sft(loss, batch)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        norm = whole_norm(torch.nn.utils.get_total_norm(gradients))
        self.log("train/grad_norm", norm)
        if not self.guard.allows(self, grad_norm=norm.item()):
            optimizer.zero_grad()  # to none at all: the optimizer then leaves weights and its own state as they are

    def on_train_batch_end(self, outputs: Any, batch: SFTBatch, batch_idx: int) -> None:
        seconds = self.timer.end_step(rest="update")
        values = self.token_metrics.compute()
        self.token_metrics.reset()
        self.log("train/loss", values.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in values.items()})
        self.log("train/lr", self.learning_rate)
        self.log_skipped()
        self.log_seconds(seconds)
        tokens = self.trainer.strategy.all_gather(batch.attention_mask.sum()).sum()
        self.log("train/tokens_per_second", tokens / seconds["step"])

    def _tokens_per_rank(self, logprobs: Tensor) -> Tensor:
        """Mean over ranks of their tokens. Gradients are averaged over ranks, so this makes the loss the mean over all
        tokens of the batch, however they are spread."""
        count = torch.tensor(float(logprobs.numel()), device=logprobs.device)
        return count if self._trainer is None else self.trainer.strategy.reduce(count, reduce_op="mean")
