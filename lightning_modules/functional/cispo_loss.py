"""Policy gradient with a clipped importance weight instead of a clipped objective."""

from __future__ import annotations

from lightning_modules.functional.policy_loss_terms import cleared, penalized_loss, token_log_ratio, token_sum
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, LossOutput


def cispo_loss(inputs: LossInputs, settings: LossConfig) -> LossOutput:
    """Every token keeps a gradient; only its weight is bounded (CISPO, MiniMax-M1, arXiv 2506.13585).

    L = sum_s sum_c( -w A logp + beta * k3 ) / denominator, w = clip(r, 1 - clip_low, 1 + clip_high) without gradient,
    r = exp(logp - logp_old). The paper tunes the upper bound alone: clip_low 1 lifts the lower one. The weight is
    bounded whatever the advantage, so `delta` has no part in it.
    """
    ratio = token_log_ratio(inputs).exp().detach()
    weight = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    objective = weight * inputs.advantages[:, None] * cleared(inputs.logprobs, inputs.mask)
    return penalized_loss(
        inputs, settings, objective=objective, ratio=ratio, clipped=weight != ratio, aggregate=token_sum
    )
