"""Metrics that are sums over all ranks: tokens of fine-tuning, answers of evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.functional.logprobs import TokenStatistics
from rewards.types import ProblemType


class TokenMetrics(Metric):
    """Loss, perplexity and accuracy over the target tokens seen since the last reset."""

    full_state_update = False
    negative_logprob: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("negative_logprob", "correct", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, statistics: TokenStatistics) -> None:
        self.negative_logprob -= statistics.logprobs.detach().double().sum()
        self.correct += statistics.is_top.sum()
        self.count += statistics.is_top.numel()

    def compute(self) -> dict[str, Tensor]:
        loss = self.negative_logprob / self.count
        return {
            "loss": loss.float(),
            "perplexity": loss.exp().float(),
            "token_accuracy": (self.correct / self.count).float(),
        }


class AnswerMetrics(Metric):
    """Means over evaluated answers: accuracy (overall and per problem type), format, length, truncation."""

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        kinds = [f"accuracy/{kind}" for kind in ProblemType]
        self.names = ("accuracy", *kinds, "format", "completion_tokens", "truncated")
        for state in ("sums", "counts"):
            self.add_state(state, torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, float], problem_type: ProblemType) -> None:
        """Add one answer with its `accuracy`, `format`, `completion_tokens` and `truncated`."""
        values = {**values, f"accuracy/{problem_type}": values["accuracy"]}
        for name, value in values.items():
            index = self.names.index(name)
            self.sums[index] += value
            self.counts[index] += 1

    def compute(self) -> dict[str, Tensor]:
        """The means of what was seen; problem types that did not occur are left out."""
        return {
            name: (self.sums[index] / self.counts[index]).float()
            for index, name in enumerate(self.names)
            if self.counts[index] > 0
        }
