"""The policy losses by name, each with what it is divided by.

A loss is a pure function of one micro-batch: its sum over that micro-batch divided by a denominator that is counted
over the whole optimizer step beforehand (`count_batch`). So one batch of 8 completions, 8 accumulated batches of 1 and
2 ranks of 4 give one gradient.

Shapes: S completions, C completion tokens (longest).
"""

from __future__ import annotations

from lightning_modules.functional.cispo_loss import cispo_loss
from lightning_modules.functional.clipped_losses import grpo_loss, token_loss
from lightning_modules.functional.gspo_loss import gspo_loss
from lightning_modules.functional.policy_loss_terms import k3_divergence
from lightning_modules.functional.policy_loss_types import (
    BatchCounts,
    LossConfig,
    LossInputs,
    LossOutput,
    PolicyLoss,
    count_batch,
)

__all__ = [
    "LOSSES",
    "BatchCounts",
    "LossConfig",
    "LossInputs",
    "LossOutput",
    "PolicyLoss",
    "count_batch",
    "find_loss",
    "k3_divergence",
]


def _completions(counts: BatchCounts) -> float:
    return counts.completions


def _tokens(counts: BatchCounts) -> float:
    return counts.tokens


def _local_tokens(counts: BatchCounts) -> float:
    """The tokens of this rank's share of the step.

    Ranks then weigh the same however long their completions are: of all losses only BNPO tells 2 ranks of 4 from one
    batch of 8. It is what "local batch" means there; with one rank it is DAPO's count, and micro-batches still add up.
    """
    return counts.local_tokens


def _token_budget(counts: BatchCounts) -> float:
    """The tokens there would be if every completion were as long as allowed: a constant, so length has no weight."""
    return counts.completions * counts.max_new_tokens


LOSSES: dict[str, PolicyLoss] = {
    "grpo": PolicyLoss(function=grpo_loss, normalizer=_completions),
    "dr_grpo": PolicyLoss(function=token_loss, normalizer=_token_budget),
    "dapo": PolicyLoss(function=token_loss, normalizer=_tokens),
    "bnpo": PolicyLoss(function=token_loss, normalizer=_local_tokens),
    "gspo": PolicyLoss(function=gspo_loss, normalizer=_completions),
    "cispo": PolicyLoss(function=cispo_loss, normalizer=_tokens, uses_delta=False),
}


def find_loss(name: str, settings: LossConfig) -> PolicyLoss:
    """The loss called `name`, once its settings are known to mean something to it.

    Raises:
        ValueError: there is no such loss, or it does not use `settings.delta` and that is set.
    """
    if name not in LOSSES:
        raise ValueError(f"model.loss is {name!r}; there are {', '.join(map(repr, LOSSES))}.")
    if settings.delta is not None and not LOSSES[name].uses_delta:
        raise ValueError(
            f"model.loss is {name!r} and model.loss_config.delta is {settings.delta}; this loss bounds every ratio "
            "by 1 + clip_high already. Set delta: null."
        )
    return LOSSES[name]
