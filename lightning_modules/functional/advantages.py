"""Group-relative advantages.

Shapes: B prompts, G completions per prompt.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from rewards.errors import UserError

AdvantageScale = Literal["group", "batch", "none"]


def group_relative_advantages(
    rewards: Tensor, scale: AdvantageScale = "group", eps: float = 1e-4, *, all_rewards: Tensor | None = None
) -> Tensor:
    """Rewards relative to their group's mean: A = (r - mean_group) / (std + eps).

    `scale` chooses std: that of the group with Bessel's correction (GRPO, arXiv 2402.03300, and the published VideoRFT
    code), that of all rewards of the batch, or none: no division (Dr. GRPO, arXiv 2503.20783). A group whose rewards
    are all equal has exactly 0, whatever rounding does to its mean.

    Args:
        rewards: float [B, G].
        scale: "group", "batch" or "none".
        eps: keeps the division finite where all rewards of a group agree.
        all_rewards: float, any shape: the rewards of all ranks, including these; "batch" divides by their std. None
            takes `rewards`. The other scales do not read it.

    Returns:
        float [B, G].

    Raises:
        UserError: fewer than two completions per group, or an unknown scale.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise UserError(
            f"rewards have shape {tuple(rewards.shape)}; a group-relative advantage needs [B, G] with G >= 2 "
            "completions per prompt."
        )
    centered = (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(zero_variance(rewards)[:, None], 0.0)
    if scale == "group":
        return centered / (rewards.std(dim=1, keepdim=True) + eps)
    if scale == "batch":
        return centered / ((rewards if all_rewards is None else all_rewards).std() + eps)
    if scale == "none":
        return centered
    raise UserError(f"scale is {scale!r}; allowed are {', '.join(map(repr, get_args(AdvantageScale)))}.")


def zero_variance(rewards: Tensor) -> Tensor:
    """bool [B]: all rewards of the group (a row of [B, G]) are equal, so it has no policy gradient."""
    return (rewards == rewards[:, :1]).all(dim=1)
