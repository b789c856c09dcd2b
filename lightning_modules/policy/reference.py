"""The reference policy: the policy as it was loaded, frozen."""

from __future__ import annotations

from typing import Any

from lightning_modules.policy.policy import Policy

PREFIX = "reference."
"""Prefix of its weights in a module that holds it as `reference`."""


def frozen(policy: Policy) -> Policy:
    """The policy itself, without gradients and in evaluation mode."""
    return policy.requires_grad_(False).eval()


def drop_from_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Leave the reference out of a Lightning checkpoint: it is the initial model, which can be loaded again."""
    for name in [name for name in checkpoint["state_dict"] if name.startswith(PREFIX)]:
        del checkpoint["state_dict"][name]


def restore_in_checkpoint(checkpoint: dict[str, Any], reference: Policy | None) -> None:
    """Put the weights of the freshly loaded reference back, so that the checkpoint loads strictly."""
    if reference is not None:
        weights = reference.state_dict(prefix=PREFIX)
        checkpoint["state_dict"].update(weights)
