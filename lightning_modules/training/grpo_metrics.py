"""What a GRPO step logs about its rollout.

Shapes: B prompts, G completions per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.functional.advantages import zero_variance
from lightning_modules.rollouts.types import RolloutGroup
from rewards.types import RewardBreakdown


def rollout_metrics(groups: Sequence[RolloutGroup], breakdown: RewardBreakdown, advantages: Tensor) -> dict[str, float]:
    """Scalars of one rollout, named as in TensorBoard; advantages [B, G]."""
    completions = [completion for group in groups for completion in group.completions]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions], dtype=torch.float32)
    truncated = torch.tensor([completion.truncated for completion in completions], dtype=torch.float32)
    metrics = {
        "train/reward/mean": breakdown.total.mean(),
        "train/reward/std": breakdown.total.std(),
        "train/reward/group_std": breakdown.total.std(dim=1).mean(),
        "train/advantage/mean": advantages.mean(),
        "train/advantage/std": advantages.std(),
        "train/advantage/max": advantages.abs().max(),
        "train/zero_variance_groups": zero_variance(breakdown.total).float().mean(),
        "train/completion_tokens/mean": lengths.mean(),
        "train/completion_tokens/max": lengths.max(),
        "train/truncated": truncated.mean(),
    }
    for name, scores in breakdown.components.items():
        metrics[f"train/reward/{name}/mean"] = scores.mean()
        metrics[f"train/reward/{name}/std"] = scores.std()
    for name, contribution in breakdown.contributions.items():
        metrics[f"train/contribution/{name}"] = contribution.mean()
    seconds = {f"seconds/reward/{name}": value for name, value in breakdown.seconds.items()}
    return {**{name: value.item() for name, value in metrics.items()}, **seconds}


def token_count(groups: Sequence[RolloutGroup]) -> int:
    """Tokens of a rollout: every prompt once, every completion."""
    prompts = sum(len(group.prompt.input_ids) for group in groups)
    return prompts + sum(len(completion.token_ids) for group in groups for completion in group.completions)
