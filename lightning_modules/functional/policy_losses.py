"""The policy losses by name, each with what it is divided by.

A loss is a pure function of one micro-batch: its sum over that micro-batch divided by a denominator that is counted
over the whole optimizer step beforehand (`count_batch`). One batch of 8 completions, 8 accumulated batches of 1 and
2 ranks of 4 therefore give the same gradient.

Shapes: S completions, C completion tokens (longest).
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import torch
from torch import Tensor

from lightning_modules.functional.masking import masked_mean, masked_row_mean
from lightning_modules.functional.policy_loss_types import (
    BatchCounts,
    KLTail,
    LossConfig,
    LossInputs,
    LossOutput,
    PolicyLoss,
)
from rewards.errors import UserError

Aggregate = Callable[[Tensor, Tensor], Tensor]
"""Takes values [S, C] and a mask [S, C] to one sum."""


def grpo_loss(inputs: LossInputs, config: LossConfig) -> LossOutput:
    """Mean over the tokens of a completion, then over completions (arXiv 2402.03300, equation 3).

    L = sum_s mean_c( -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + beta * k3 ) / denominator,
    r = exp(logp - logp_old). With logp_old = logp the gradient is that of the published one-update code.
    """
    return _clipped_loss(inputs, config, ratio=_token_log_ratio(inputs).exp(), aggregate=_completion_mean_sum)


def token_loss(inputs: LossInputs, config: LossConfig) -> LossOutput:
    """Sum over all tokens: a long completion weighs more than a short one.

    L = sum_s sum_c( -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + beta * k3 ) / denominator. The denominator
    makes it DAPO (arXiv 2503.14476, token-level policy gradient loss), BNPO or Dr. GRPO (arXiv 2503.20783).
    """
    return _clipped_loss(inputs, config, ratio=_token_log_ratio(inputs).exp(), aggregate=_token_sum)


def gspo_loss(inputs: LossInputs, config: LossConfig) -> LossOutput:
    """One probability ratio per completion, that of the geometric means, clipped as a whole (GSPO, arXiv 2507.18071).

    L = sum_s( -min(q A, clip(q, 1 - clip_low, 1 + clip_high) A) + beta * mean_c k3 ) / denominator,
    q = exp(mean_c(logp - logp_old)): a completion keeps all of its gradient or loses all of it.
    """
    log_ratio = masked_row_mean(_token_log_ratio(inputs), inputs.mask)  # [S]
    # Repeated for every token, the ratio of a completion passes the mean over its tokens unchanged, and a masked
    # completion drops out there.
    ratio = log_ratio.exp()[:, None].expand_as(inputs.logprobs)  # [S, C]
    firsts = inputs.mask & (inputs.mask.cumsum(dim=1) == 1)  # [S, C]: one place of each completion that counts
    return _clipped_loss(inputs, config, ratio=ratio, aggregate=_completion_mean_sum, logged=firsts)


def cispo_loss(inputs: LossInputs, config: LossConfig) -> LossOutput:
    """Every token keeps a gradient; only its weight is bounded (CISPO, MiniMax-M1, arXiv 2506.13585).

    L = sum_s sum_c( -w A logp + beta * k3 ) / denominator, w = clip(r, 1 - clip_low, 1 + clip_high) without gradient,
    r = exp(logp - logp_old). The paper tunes only the upper bound; clip_low 1 lifts the lower one. The weight is
    bounded whatever the advantage, so `delta` has no effect.
    """
    ratio = _token_log_ratio(inputs).exp().detach()
    weight = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    objective = weight * inputs.advantages[:, None] * _cleared(inputs.logprobs, inputs.mask)
    return _penalized_loss(
        inputs, config, objective=objective, ratio=ratio, clipped=weight != ratio, aggregate=_token_sum
    )


def k3_divergence(
    logprobs: Tensor, reference_logprobs: Tensor, log_clamp: float = 10.0, beyond_clamp: KLTail = "constant"
) -> Tensor:
    """Per-token estimate of KL(policy || reference): k(y) = exp(y) - y - 1, y = clamp(x), x = log ref - log policy.

    Never negative and unbiased without the clamp (Schulman 2020, "Approximating KL divergence", estimator k3). The
    clamped k has no gradient beyond the clamp; "linear" adds k'(y) (x - y) there, its tangent, which does. [S, C].
    """
    x = reference_logprobs - logprobs
    clamped = x.clamp(-log_clamp, log_clamp)
    divergence = clamped.exp() - clamped - 1
    if beyond_clamp == "constant":
        return divergence
    return divergence + (clamped.detach().exp() - 1) * (x - clamped)


def _token_budget(counts: BatchCounts) -> float:
    """The tokens there would be if every completion were as long as allowed: a constant, so length has no weight."""
    return counts.completions * counts.max_new_tokens


LOSSES: dict[str, PolicyLoss] = {
    "grpo": PolicyLoss(function=grpo_loss, normalizer=attrgetter("completions")),
    "dr_grpo": PolicyLoss(function=token_loss, normalizer=_token_budget),
    "dapo": PolicyLoss(function=token_loss, normalizer=attrgetter("tokens")),
    # BNPO's "local batch": ranks weigh the same however long their completions are, so this is the only loss that
    # tells 2 ranks of 4 from one batch of 8. On one rank it is DAPO, and micro-batches still add up.
    "bnpo": PolicyLoss(function=token_loss, normalizer=attrgetter("local_tokens")),
    "gspo": PolicyLoss(function=gspo_loss, normalizer=attrgetter("completions")),
    "cispo": PolicyLoss(function=cispo_loss, normalizer=attrgetter("tokens"), uses_delta=False),
}


def find_loss(name: str, config: LossConfig) -> PolicyLoss:
    """The loss called `name`, after checking that it uses every setting of `config`.

    Raises:
        UserError: there is no such loss, or it does not use `config.delta` and that is set.
    """
    if name not in LOSSES:
        raise UserError(f"model.loss is {name!r}; allowed are {', '.join(map(repr, LOSSES))}.")
    if config.delta is not None and not LOSSES[name].uses_delta:
        raise UserError(
            f"model.loss is {name!r} and model.loss_config.delta is {config.delta}; this loss bounds every ratio "
            "by 1 + clip_high already. Set delta: null."
        )
    return LOSSES[name]


def _cleared(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with 0 where `mask` (same shape) is false, and no gradient from there.

    Multiplying by the mask is not enough before an exponential: infinity times 0 is not a number.
    """
    return values.masked_fill(~mask, 0.0)


def _token_log_ratio(inputs: LossInputs) -> Tensor:
    """log(policy / old policy) of each token, 0 on padding. [S, C]."""
    return _cleared(inputs.logprobs - inputs.old_logprobs, inputs.mask)


def _token_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of [S, C] over its true places: every token weighs the same."""
    return (values * mask).sum()


def _completion_mean_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over completions of their token means: every completion with a true place weighs the same."""
    return masked_row_mean(values, mask).sum()


def _clipped_loss(
    inputs: LossInputs, config: LossConfig, *, ratio: Tensor, aggregate: Aggregate, logged: Tensor | None = None
) -> LossOutput:
    """The penalized loss of the objective min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A), ratio [S, C].

    A ratio counts as clipped where clipping removed its gradient, not wherever it left the interval: beyond
    1 + clip_high only with a positive advantage, below 1 - clip_low or beyond delta only with a negative one.
    """
    advantages = inputs.advantages[:, None]
    bounded = ratio if config.delta is None else ratio.clamp(max=config.delta)
    clipped_ratio = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    objective = torch.minimum(bounded * advantages, clipped_ratio * advantages)  # [S, C]
    clipped = objective.detach() != ratio.detach() * advantages  # [S, C]
    return _penalized_loss(
        inputs, config, objective=objective, ratio=ratio, clipped=clipped, aggregate=aggregate, logged=logged
    )


def _penalized_loss(
    inputs: LossInputs,
    config: LossConfig,
    *,
    objective: Tensor,
    ratio: Tensor,
    clipped: Tensor,
    aggregate: Aggregate,
    logged: Tensor | None = None,
) -> LossOutput:
    """aggregate(-objective + beta * k3) / denominator, with what to log.

    Args:
        objective: float [S, C], differentiable: what each token adds to the objective.
        ratio: float [S, C], for logging.
        clipped: bool [S, C], for logging.
        aggregate: sums the objective and the KL penalty alike.
        logged: bool [S, C]: the places whose ratios are logged; None takes all tokens.
    """
    token_losses = -objective
    logged = inputs.mask if logged is None else logged
    metrics = {"clip_fraction": masked_mean(clipped.float(), logged), "ratio": masked_mean(ratio, logged)}
    if inputs.reference_logprobs is None:
        assert config.beta == 0, "beta > 0 without a reference"
    else:
        logprobs, reference = _cleared(inputs.logprobs, inputs.mask), _cleared(inputs.reference_logprobs, inputs.mask)
        divergence = k3_divergence(logprobs, reference, config.kl_log_clamp, config.kl_beyond_clamp)
        token_losses = token_losses + config.beta * divergence
        metrics["kl"] = masked_mean(divergence, inputs.mask)
        beyond = (reference - logprobs).abs() > config.kl_log_clamp
        metrics["kl_clamped"] = masked_mean(beyond.float(), inputs.mask)
    return LossOutput(loss=aggregate(token_losses, inputs.mask) / inputs.denominator, metrics=metrics)
