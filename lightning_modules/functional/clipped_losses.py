"""Clipped surrogates with one probability ratio per token: GRPO and the losses that only weigh its tokens otherwise."""

from __future__ import annotations

from lightning_modules.functional.policy_loss_terms import (
    clipped_objective,
    completion_mean_sum,
    penalized_loss,
    token_log_ratio,
    token_sum,
)
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, LossOutput


def grpo_loss(inputs: LossInputs, settings: LossConfig) -> LossOutput:
    """Mean over the tokens of a completion, then over completions (arXiv 2402.03300, equation 3).

    L = sum_s mean_c( -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + beta * k3 ) / denominator,
    r = exp(logp - logp_old). With logp_old = logp the gradient is that of the published one-update code.
    """
    ratio = token_log_ratio(inputs).exp()
    objective, clipped = clipped_objective(ratio, inputs.advantages, settings)
    return penalized_loss(
        inputs, settings, objective=objective, ratio=ratio, clipped=clipped, aggregate=completion_mean_sum
    )


def token_loss(inputs: LossInputs, settings: LossConfig) -> LossOutput:
    """Sum over all tokens: a long completion weighs more than a short one.

    L = sum_s sum_c( -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + beta * k3 ) / denominator. The denominator
    makes it DAPO (arXiv 2503.14476, token-level policy gradient loss), BNPO or Dr. GRPO (arXiv 2503.20783).
    """
    ratio = token_log_ratio(inputs).exp()
    objective, clipped = clipped_objective(ratio, inputs.advantages, settings)
    return penalized_loss(inputs, settings, objective=objective, ratio=ratio, clipped=clipped, aggregate=token_sum)
