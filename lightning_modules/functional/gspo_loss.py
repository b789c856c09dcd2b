"""A clipped surrogate with one probability ratio per completion."""

from __future__ import annotations

from lightning_modules.functional.masking import masked_row_mean
from lightning_modules.functional.policy_loss_terms import (
    clipped_objective,
    completion_mean_sum,
    penalized_loss,
    token_log_ratio,
)
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, LossOutput


def gspo_loss(inputs: LossInputs, settings: LossConfig) -> LossOutput:
    """The ratio of the geometric mean probabilities, clipped as one (GSPO, arXiv 2507.18071).

    L = sum_s( -min(q A, clip(q, 1 - clip_low, 1 + clip_high) A) + beta * mean_c k3 ) / denominator,
    q = exp(mean_c(logp - logp_old)): a completion keeps its gradient whole or loses it whole.
    """
    log_ratio = masked_row_mean(token_log_ratio(inputs), inputs.mask)  # [S]
    # Given to every token, the ratio of a completion passes the mean over tokens unchanged, and a masked completion
    # drops out there.
    ratio = log_ratio.exp()[:, None].expand_as(inputs.logprobs)  # [S, C]
    objective, clipped = clipped_objective(ratio, inputs.advantages, settings)
    return penalized_loss(
        inputs, settings, objective=objective, ratio=ratio, clipped=clipped, aggregate=completion_mean_sum
    )
