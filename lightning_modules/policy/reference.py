"""The reference policy: the policy as it was loaded, frozen."""

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


def drop_from_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Leave the reference out of a Lightning checkpoint: it is the initial model, which can be loaded again."""
    for name in [name for name in checkpoint["state_dict"] if name.startswith(PREFIX)]:
        del checkpoint["state_dict"][name]


def restore_in_checkpoint(checkpoint: dict[str, Any], reference: Reference | None) -> None:
    """Put the weights of the freshly loaded reference back, so that the checkpoint loads strictly."""
    if isinstance(reference, Policy):
        weights = reference.state_dict(prefix=PREFIX)
        checkpoint["state_dict"].update(weights)
