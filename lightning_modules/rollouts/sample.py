"""What a training or validation step leaves behind for those who want to look at it: one scored rollout.

Shapes: B prompts, G completions per prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lightning_modules.rollouts.types import RolloutGroup
from rewards.types import RewardBreakdown


@dataclass(frozen=True, kw_only=True)
class RolloutSample:
    """The groups of one step with their scores.

    A LightningModule that samples holds the latest one in its attribute `last_rollouts` (None before the first).
    """

    groups: list[RolloutGroup]
    """B groups of G completions."""
    breakdown: RewardBreakdown
    """Scores [B, G] of the same groups in the same order."""
    advantages: Tensor
    """float [B, G]."""

    def __post_init__(self) -> None:
        sizes = {(len(self.groups), len(group.completions)) for group in self.groups}
        sizes |= {tuple(self.breakdown.total.shape), tuple(self.advantages.shape)}
        assert len(sizes) <= 1, f"groups, breakdown and advantages disagree about [B, G]: {sorted(sizes)}"


def latest_rollouts(module: nn.Module) -> RolloutSample | None:
    """What a module that samples has left behind; None for other modules, too."""
    return getattr(module, "last_rollouts", None)
