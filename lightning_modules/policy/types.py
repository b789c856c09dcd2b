"""What the policy takes and gives in training.

Shapes: S completions, C completion tokens (longest), N completion tokens in all, L tokens of the packed row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from datamodules.types import VisionInput
from lightning_modules.policy.shared_prefix import Layout


@dataclass(kw_only=True)
class PolicyBatch:
    """Groups packed into one row without padding, see `shared_prefix`."""

    input_ids: Tensor
    """int64 [1, L]."""
    position_ids: Tensor
    """int64 [3, 1, L]."""
    layout: Layout
    """Per group the prompt's tokens and the input tokens of each completion."""
    rows: Tensor
    """int64 [N]: the place in the row that predicts each completion token."""
    targets: Tensor
    """int64 [N]: the completion tokens, in the same order."""
    mask: Tensor
    """bool [S, C]: real completion tokens; its true places, row by row, are the N tokens."""
    vision: VisionInput | None
    """Media of all prompts; None without media, and where their features are known."""
    vision_features: Tensor | None = None
    """[M, H]: features of all media, where a frozen tower computed them in the rollout."""

    def to(self, device: torch.device | str) -> PolicyBatch:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor | VisionInput)}
        return PolicyBatch(**{**values, **moved})


@dataclass(frozen=True, kw_only=True)
class CompletionStatistics:
    """The policy's view of completions, zero on padding."""

    logprobs: Tensor
    """float32 [S, C], differentiable."""
    entropy: Tensor
    """float32 [S, C] in nats."""
