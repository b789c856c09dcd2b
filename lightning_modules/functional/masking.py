"""Sums and means over the real tokens of a padded batch.

Shapes: S completions, C completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WeightedMean:
    """A mean of one micro-batch, in parts that add up over micro-batches and ranks."""

    total: Tensor
    """Detached scalar: sum of the values."""
    weight: Tensor
    """Scalar: how many there are."""

    def item(self) -> float:
        """The mean; 0 of no values."""
        return self.total.item() / max(1.0, self.weight.item())


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """bool [S, size], true in the first `lengths[s]` places of row s; lengths int64 [S]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def masked_mean(values: Tensor, mask: Tensor) -> WeightedMean:
    """Mean of `values`, without gradient, where `mask` (same shape) is true; 0 if it is true nowhere."""
    return WeightedMean(total=(values.detach() * mask).sum(), weight=mask.sum())


def masked_row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row of [S, C] over its true places; 0 for a row without any."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
