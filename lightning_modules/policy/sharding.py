"""A policy cut into shards over all ranks (FSDP2), whole for the time of a rollout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp import register_fsdp_forward_method as register_forward

from lightning_modules.policy.policy import Policy

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

FORWARD_METHODS = ("logprobs", "target_statistics", "prefill", "decode", "with_frozen_features")
"""Ways into the policy that read weights; FSDP2 by itself gathers them for `forward` alone."""


def shard(
    policy: Policy,
    mesh: DeviceMesh | None = None,
    *,
    mixed_precision: MixedPrecisionPolicy | None = None,
    offload: OffloadPolicy | None = None,
) -> Policy:
    """Shard every decoder layer and vision block, then what remains, in place.

    Args:
        policy: built and frozen as it shall train, on any device; its shards end on the mesh's.
        mesh: one-dimensional mesh of the ranks; None takes all.
        mixed_precision: in which type weights are gathered and gradients are reduced.
        offload: where shards live between uses.

    Returns:
        The policy.
    """
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": mixed_precision or MixedPrecisionPolicy(),
        "offload_policy": offload or OffloadPolicy(),
    }
    for block in policy.family.blocks(policy.model):
        fully_shard(block, **options)
    # FSDP2 keeps the root whole from forward to backward. A frozen policy has no backward that would free it.
    trains = any(parameter.requires_grad for parameter in policy.parameters())
    fully_shard(policy, reshard_after_forward=None if trains else True, **options)
    for method in FORWARD_METHODS:
        register_forward(policy, method)
    return policy


@contextmanager
def unsharded(policy: Policy) -> Iterator[None]:
    """Gather all weights once, on all ranks together; within, no forward pass waits for another rank.

    Ranks may therefore take different numbers of steps, sample different numbers of groups and call the vision tower
    or not. Nothing happens for a policy without shards, nor within another `unsharded`. The weights must not change
    inside.
    """
    modules = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if policy.is_gathered or not modules:
        yield
        return
    with torch.inference_mode(False):  # an evaluation's inference tensors could not be trained on later
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
    policy.is_gathered = True
    try:
        yield
    finally:
        policy.is_gathered = False
        for module in modules:
            module.set_reshard_after_forward(module is not policy, recurse=False)
            module.reshard()


def full_state_dict(policy: Policy) -> dict[str, torch.Tensor] | None:
    """The weights of the transformers model on the CPU, on rank 0 (empty on the others); call it on all ranks.

    None for a policy without shards, whose model can be written as it is.
    """
    if not isinstance(policy, FSDPModule):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(policy.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    # Gathering parts tied weights, and a writer can no longer tell that they are one.
    own = {name for name, _ in policy.model.named_parameters()}
    tied = {name for name, _ in policy.model.named_parameters(remove_duplicate=False)} - own
    return {name: value for name, value in weights.items() if name not in tied}
