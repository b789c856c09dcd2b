"""The terms that policy losses are put together from.

Shapes: S completions, C completion tokens (longest).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.functional.masking import masked_mean, masked_row_mean
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, LossOutput


def cleared(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with 0 where `mask` (same shape) is false, and no gradient from there.

    Multiplying by the mask is not enough before an exponential: infinity times 0 is not a number.
    """
    return values.masked_fill(~mask, 0.0)


def token_log_ratio(inputs: LossInputs) -> Tensor:
    """log(policy / old policy) of each token, 0 on padding. [S, C]."""
    return cleared(inputs.logprobs - inputs.old_logprobs, inputs.mask)


def clipped_objective(ratio: Tensor, advantages: Tensor, settings: LossConfig) -> tuple[Tensor, Tensor]:
    """What is maximized, min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A), and where it lost its gradient.

    A ratio is clipped where clipping took its gradient away, not wherever it left the interval: beyond 1 + clip_high
    only with a positive advantage, below 1 - clip_low only with a negative one, beyond delta only with a negative one.

    Args:
        ratio: float [S, C].
        advantages: float [S].

    Returns:
        The objective, float [S, C], and bool [S, C], true where it is clipped.
    """
    advantages = advantages[:, None]
    bounded = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    clipped_ratio = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    objective = torch.minimum(bounded * advantages, clipped_ratio * advantages)
    return objective, objective.detach() != ratio.detach() * advantages


def k3_divergence(logprobs: Tensor, reference_logprobs: Tensor, log_clamp: float = 10.0) -> Tensor:
    """Per-token estimate of KL(policy || reference): exp(x) - x - 1 with x = clamp(log ref - log policy).

    Never negative and unbiased without the clamp (Schulman 2020, "Approximating KL divergence", estimator k3). [S, C].
    """
    x = (reference_logprobs - logprobs).clamp(-log_clamp, log_clamp)
    return x.exp() - x - 1


def token_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of [S, C] over its true places: every token weighs the same."""
    return (values * mask).sum()


def completion_mean_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over completions of their token means: every completion with a true place weighs the same."""
    return masked_row_mean(values, mask).sum()


def penalized_loss(
    inputs: LossInputs,
    settings: LossConfig,
    *,
    objective: Tensor,
    ratio: Tensor,
    clipped: Tensor,
    aggregate: Callable[[Tensor, Tensor], Tensor],
) -> LossOutput:
    """aggregate(-objective + beta * k3) / denominator, with what to log.

    Args:
        objective: float [S, C], differentiable: what each token adds to the objective.
        ratio: float [S, C], for logging.
        clipped: bool [S, C], for logging.
        aggregate: takes values [S, C] and the mask to their sum; the KL penalty is aggregated like the objective.
    """
    token_loss = -objective
    metrics = {
        "clip_fraction": masked_mean(clipped.float(), inputs.mask),
        "ratio": masked_mean(ratio.detach(), inputs.mask),
    }
    if inputs.reference_logprobs is None:
        assert settings.beta == 0, "beta > 0 without a reference"
    else:
        divergence = k3_divergence(
            cleared(inputs.logprobs, inputs.mask),
            cleared(inputs.reference_logprobs, inputs.mask),
            settings.kl_log_clamp,
        )
        token_loss = token_loss + settings.beta * divergence
        metrics["kl"] = masked_mean(divergence.detach(), inputs.mask)
    return LossOutput(loss=aggregate(token_loss, inputs.mask) / inputs.denominator, metrics=metrics)
