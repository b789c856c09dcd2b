"""The reference policy: the policy as it was loaded or as it was some steps ago, frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_modules.policy.adapters import adapter_config, disabled_adapters
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.types import CompletionStatistics, PolicyBatch

PREFIX = "reference."
"""Prefix of its weights in a module that holds it as `reference`."""


class AdapterlessPolicy:
    """The policy with its adapters disabled, which is the policy as it was loaded: a reference without a second copy.

    Args:
        policy: a policy with adapters whose other weights are frozen.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def logprobs(self, batch: PolicyBatch, *, temperature: float) -> CompletionStatistics:
        """As `Policy.logprobs`, without gradients: the backward would recompute with the adapters."""
        with torch.no_grad(), disabled_adapters(self.policy.model):
            return self.policy.logprobs(batch, temperature=temperature)


Reference = Policy | AdapterlessPolicy


def reference_of(policy: Policy, load: Callable[[], Policy]) -> Reference:
    """The reference of a policy that was just loaded; `load` makes a second copy where it has no adapters."""
    return frozen(load()) if adapter_config(policy.model) is None else AdapterlessPolicy(policy)


def frozen(policy: Policy) -> Policy:
    """The policy itself, without gradients and in evaluation mode."""
    return policy.requires_grad_(False).eval()


def check_sync(every: int | None, *, beta: float, has_adapters: bool) -> None:
    """
    Raises:
        ValueError: no reference weights could be replaced every so many steps.
    """
    if every is None:
        return
    said = f"model.reference_sync_steps is {every}"
    if every < 1:
        raise ValueError(f"{said}; it must be >= 1, or null to keep the initial model as reference.")
    if beta == 0:
        raise ValueError(f"{said}, but model.loss_config.beta is 0, so there is no reference; set one of them.")
    if has_adapters:
        raise ValueError(
            f"{said}, but with model.lora the reference is the model without its adapters, which has no weights of its "
            "own. Set reference_sync_steps: null."
        )


@torch.no_grad()
def copy_weights(policy: Policy, reference: Policy) -> None:
    """Make the reference the policy as it is now; of sharded ones every rank copies its own shards."""
    for target, source in zip(reference.parameters(), policy.parameters(), strict=True):
        target.copy_(source)


def drop_from_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Leave the reference out of a Lightning checkpoint: it is the initial model, which can be loaded again."""
    for name in [name for name in checkpoint["state_dict"] if name.startswith(PREFIX)]:
        del checkpoint["state_dict"][name]


def restore_in_checkpoint(checkpoint: dict[str, Any], reference: Reference | None) -> None:
    """Put the weights of the freshly loaded reference back, so that the checkpoint loads strictly."""
    if isinstance(reference, Policy):
        weights = reference.state_dict(prefix=PREFIX)
        checkpoint["state_dict"].update(weights)
