"""Sums and means over the real tokens of a padded batch.

Shapes: S completions, C completion tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """bool [S, size], true in the first `lengths[s]` places of row s; lengths int64 [S]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar mean of `values` where `mask` (same shape) is true; 0 if it is true nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row of [S, C] over its true places; 0 for a row without any."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
