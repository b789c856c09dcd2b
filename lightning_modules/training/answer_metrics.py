"""Means over the answers of an evaluation, on all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from rewards.types import ProblemType


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
