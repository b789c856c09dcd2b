"""What a GRPO step logs about its rollout.

Shapes: B prompts, G completions per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.functional.advantages import zero_variance
from lightning_modules.rollouts.types import RolloutGroup
from lightning_modules.training.step_metrics import StepMetrics
from rewards.types import RewardBreakdown

TOKENS = "tokens"
"""Tokens of a rollout: every prompt once, every completion."""


def rollout_metrics(groups: Sequence[RolloutGroup], breakdown: RewardBreakdown) -> StepMetrics:
    """What the policy drew at first, named as in TensorBoard.

    Redrawing replaces the groups whose rewards agree, so what is left afterwards says less about the policy.
    """
    completions = [completion for group in groups for completion in group.completions]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    metrics = StepMetrics()
    metrics.add_values("train/completion_tokens/mean", lengths)
    metrics.add_maximum("train/completion_tokens/max", lengths.max())
    metrics.add_values("train/truncated", torch.tensor([completion.truncated for completion in completions]))
    metrics.add_values("train/zero_variance_groups", zero_variance(breakdown.total))
    metrics.add_values("train/reward/group_std", breakdown.total.std(dim=1))
    rewards = {"train/reward": breakdown.total}
    rewards |= {f"train/reward/{name}": scores for name, scores in breakdown.components.items()}
    for name, scores in rewards.items():
        metrics.add_values(f"{name}/mean", scores)
        metrics.add_deviation(f"{name}/std", scores)
    for name, contribution in breakdown.contributions.items():
        metrics.add_values(f"train/contribution/{name}", contribution)
    for name, seconds in breakdown.seconds.items():
        metrics.add_values(f"seconds/reward/{name}", torch.tensor(seconds))
    return metrics


def add_redraws(metrics: StepMetrics, breakdown: RewardBreakdown, redrawn: int) -> None:
    """Add what redrawing made of the rewards; a group that was drawn again twice counts twice in `redrawn`."""
    metrics.add_count("train/redrawn_groups", redrawn)
    metrics.add_values("train/reward/mean_after_redraws", breakdown.total)
    metrics.add_values("train/zero_variance_groups_after_redraws", zero_variance(breakdown.total))


def add_trained_groups(metrics: StepMetrics, groups: Sequence[RolloutGroup], advantages: Tensor) -> None:
    """Add what is trained on, after redrawing; advantages [B, G]."""
    prompts = sum(len(group.prompt.input_ids) for group in groups)
    completions = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    metrics.add_count(TOKENS, prompts + completions)
    metrics.add_values("train/advantage/mean", advantages)
    metrics.add_deviation("train/advantage/std", advantages)
    metrics.add_maximum("train/advantage/max", advantages.abs().max())
