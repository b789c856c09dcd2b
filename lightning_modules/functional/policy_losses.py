"""Policy-gradient losses as functions of log-probabilities.

Shapes: S completions, C completion tokens; all inputs are padded [S, C] with a mask, advantages are [S].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.functional.masking import masked_mean, masked_row_mean


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Everything a policy loss may look at."""

    logprobs: Tensor
    """float [S, C], differentiable, of the policy being trained."""
    old_logprobs: Tensor
    """float [S, C], of the policy when it sampled; equal to `logprobs` in the first inner epoch."""
    reference_logprobs: Tensor | None
    """float [S, C], of the reference policy; None when beta is 0."""
    advantages: Tensor
    """float [S]."""
    mask: Tensor
    """bool [S, C], true on completion tokens (end-of-sequence included)."""
    denominator: float
    """What the sum is divided by: the completions of the whole step over all micro-batches, so that splitting a
    batch does not change its gradient."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Coefficients of the policy loss."""

    beta: float = 0.04
    """Weight of the KL penalty towards the reference; 0 drops the reference altogether."""
    clip_low: float = 0.2
    """The probability ratio counts down to 1 - clip_low."""
    clip_high: float = 0.2
    """The probability ratio counts up to 1 + clip_high."""
    kl_log_clamp: float = 10.0
    """Bound on the log-ratio inside the KL estimate (published code: 10)."""

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"loss.beta is {self.beta}; it must be >= 0 (0 trains without a reference).")
        if not 0 < self.clip_low <= 1 or self.clip_high <= 0:
            raise ValueError(
                f"loss.clip_low is {self.clip_low} and loss.clip_high is {self.clip_high}; clip_low must be in (0, 1] "
                "and clip_high > 0."
            )


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A loss to differentiate and what to log about it."""

    loss: Tensor
    """Scalar."""
    metrics: Mapping[str, Tensor]
    """Detached scalars: means over the tokens of this micro-batch."""


def k3_divergence(logprobs: Tensor, reference_logprobs: Tensor, log_clamp: float = 10.0) -> Tensor:
    """Per-token estimate of KL(policy || reference): exp(x) - x - 1 with x = clamp(log ref - log policy).

    Never negative and unbiased without the clamp (Schulman 2020, "Approximating KL divergence", estimator k3). [S, C].
    """
    x = (reference_logprobs - logprobs).clamp(-log_clamp, log_clamp)
    return x.exp() - x - 1


def grpo_loss(inputs: LossInputs, settings: LossSettings) -> LossOutput:
    """Clipped surrogate with a KL penalty, mean over tokens, then over completions (arXiv 2402.03300, equation 3).

    L = sum_s mean_c( -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + beta * k3 ) / denominator,
    r = exp(logp - logp_old). With logp_old = logp the gradient is that of the published one-update code.
    """
    ratio = (inputs.logprobs - inputs.old_logprobs).exp()
    clipped_ratio = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    advantages = inputs.advantages[:, None]
    token_loss = -torch.minimum(ratio * advantages, clipped_ratio * advantages)
    # A token is clipped where the clamp took its gradient away, not wherever the ratio left the interval.
    clipped = clipped_ratio * advantages < ratio * advantages
    metrics = {
        "clip_fraction": masked_mean(clipped.float(), inputs.mask),
        "ratio": masked_mean(ratio.detach(), inputs.mask),
    }
    if inputs.reference_logprobs is not None:
        divergence = k3_divergence(inputs.logprobs, inputs.reference_logprobs, settings.kl_log_clamp)
        token_loss = token_loss + settings.beta * divergence
        metrics["kl"] = masked_mean(divergence.detach(), inputs.mask)
    loss = masked_row_mean(token_loss, inputs.mask).sum() / inputs.denominator
    return LossOutput(loss=loss, metrics=metrics)


LOSSES: dict[str, Callable[[LossInputs, LossSettings], LossOutput]] = {"grpo": grpo_loss}
