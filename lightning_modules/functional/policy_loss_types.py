"""Inputs and outputs of the policy losses, and the counts that their denominators are computed from.

Shapes: S completions, C completion tokens (longest); all inputs are padded [S, C] with a mask, advantages are [S].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_modules.functional.masking import WeightedMean
from rewards.errors import UserError

KLTail = Literal["constant", "linear"]


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """All that a policy loss sees: one micro-batch."""

    logprobs: Tensor
    """float [S, C], differentiable, of the policy being trained."""
    old_logprobs: Tensor
    """float [S, C], of the policy when it sampled; equal to `logprobs` in the first inner epoch."""
    reference_logprobs: Tensor | None
    """float [S, C], of the reference policy; None when beta is 0."""
    advantages: Tensor
    """float [S]."""
    mask: Tensor
    """bool [S, C], true on completion tokens (end-of-sequence included). A completion left out of the loss, such as a
    truncated one under overlong filtering (DAPO, arXiv 2503.14476), is a row of false. Values where the mask is false
    change neither the loss nor its gradient."""
    denominator: float
    """What the sum is divided by: `PolicyLoss.denominator` of the whole optimizer step, so that splitting a batch does
    not change its gradient."""

    def __post_init__(self) -> None:
        # A wrong shape would broadcast into a plausible loss.
        assert self.logprobs.shape == self.old_logprobs.shape == self.mask.shape, "log-probabilities and mask differ"
        assert self.reference_logprobs is None or self.reference_logprobs.shape == self.mask.shape, "reference differs"
        assert self.advantages.shape == self.mask.shape[:1], "one advantage per completion"
        assert self.denominator > 0, "denominators are positive, see PolicyLoss.denominator"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Coefficients of the policy loss."""

    beta: float = 0.04
    """Weight of the KL penalty toward the reference; 0 needs no reference at all."""
    clip_low: float = 0.2
    """Lower bound of the probability ratio is 1 - clip_low; 1 lifts the bound."""
    clip_high: float = 0.2
    """Upper bound of the probability ratio is 1 + clip_high. DAPO raises it to 0.28; GSPO's ratio of a whole completion
    stays near 1 and needs about 4e-4 (and clip_low 3e-4)."""
    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative, which clip_high leaves unbounded (two-sided clipping,
    arXiv 2505.07291; dual clip, arXiv 1912.09729); null sets no bound."""
    kl_log_clamp: float = 10.0
    """Bound on the log-ratio inside the KL estimate (published code: 10)."""
    kl_beyond_clamp: KLTail = "constant"
    """The KL estimate of a token whose log-ratio is beyond kl_log_clamp. constant: its value at the bound, without a
    gradient, as in the published code: what has drifted that far is no longer drawn back. linear: it goes on along its
    tangent, so that the gradient is the one at the bound. The metric `kl_clamped` is the fraction of such tokens."""

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise UserError(f"model.loss_config.beta is {self.beta}; it must be >= 0 (0 trains without a reference).")
        if not (0 < self.clip_low <= 1 and self.clip_high > 0):
            raise UserError(
                f"model.loss_config.clip_low is {self.clip_low} and clip_high is {self.clip_high}; clip_low must be "
                "in (0, 1] and clip_high > 0."
            )
        if self.delta is not None and not self.delta > 1 + self.clip_high:
            raise UserError(
                f"model.loss_config.delta is {self.delta} and clip_high is {self.clip_high}; delta must be > 1 + "
                "clip_high, or null for no bound."
            )
        if self.kl_beyond_clamp not in get_args(KLTail):
            raise UserError(
                f"model.loss_config.kl_beyond_clamp is {self.kl_beyond_clamp!r}; allowed are "
                f"{', '.join(map(repr, get_args(KLTail)))}."
            )
        if not self.kl_log_clamp > 0:
            raise UserError(f"model.loss_config.kl_log_clamp is {self.kl_log_clamp}; it must be > 0.")


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A loss to differentiate and what to log about it."""

    loss: Tensor
    """Scalar. Summed over the micro-batches of a step it is the loss of everything on this rank."""
    metrics: Mapping[str, WeightedMean]
    """Means over this micro-batch: `clip_fraction` and `ratio` over what has a ratio of its own (tokens; completions in
    GSPO) and, with a reference, `kl` and `kl_clamped` over tokens."""


@dataclass(frozen=True, kw_only=True)
class BatchCounts:
    """Size of one optimizer step: all its micro-batches on all ranks.

    Counts are **means per rank**: the sum over all ranks divided by their number. Data-parallel training averages
    gradients over ranks, and the mean over R ranks of grad(sum_r) / (N / R) is the gradient of the sum over all
    ranks / N.

    Completions without an unmasked token are not counted: what adds nothing to the numerator adds nothing to the
    denominator. Completions of groups whose rewards all agree are counted even where their forward pass is skipped.
    """

    completions: float
    """Completions with an unmasked token, per rank."""
    tokens: float
    """Unmasked completion tokens, per rank."""
    local_tokens: float
    """Unmasked completion tokens of this rank alone."""
    max_new_tokens: int
    """The limit that completions were sampled under."""


def count_batch(
    masks: Sequence[Tensor], *, max_new_tokens: int, mean_over_ranks: Callable[[Tensor], Tensor] | None = None
) -> BatchCounts:
    """Count an optimizer step before its first backward pass.

    Args:
        masks: bool [S, C] of each of this rank's micro-batches, as they go into `LossInputs`.
        max_new_tokens: the limit that completions were sampled under.
        mean_over_ranks: averages a float64 [2] over all ranks, as a strategy's `reduce` does; then every rank must
            call this function. None stands for a single rank.
    """
    completions = sum(int(mask.any(dim=1).sum()) for mask in masks)
    tokens = sum(int(mask.sum()) for mask in masks)
    counts = torch.tensor([completions, tokens], dtype=torch.float64, device=masks[0].device)
    mean_completions, mean_tokens = (counts if mean_over_ranks is None else mean_over_ranks(counts)).tolist()
    return BatchCounts(
        completions=mean_completions, tokens=mean_tokens, local_tokens=tokens, max_new_tokens=max_new_tokens
    )


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """A loss and the count that normalizes it."""

    function: Callable[[LossInputs, LossConfig], LossOutput]
    """Sums over a micro-batch and divides by `LossInputs.denominator`."""
    normalizer: Callable[[BatchCounts], float]
    """The count that makes the sum a mean."""
    uses_delta: bool = True
    """Whether the loss reads `LossConfig.delta`."""

    def __call__(self, inputs: LossInputs, config: LossConfig) -> LossOutput:
        return self.function(inputs, config)

    def denominator(self, counts: BatchCounts) -> float:
        """The number, positive, that every micro-batch of the step divides by."""
        # Only a step without a single token counts 0. Its sums are 0 too, so any divisor gives the gradient 0.
        return self.normalizer(counts) or 1.0
