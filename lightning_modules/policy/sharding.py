"""A policy cut into shards over all ranks (FSDP2), whole for the time of a rollout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp import register_fsdp_forward_method as register_forward
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_modules.policy.policy import Policy

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

FORWARD_METHODS = ("logprobs", "run_prompts", "target_statistics", "prefill", "decode", "with_frozen_features")
"""Ways into the policy that read weights; FSDP2 by itself gathers them for `forward` alone."""


def shard(policy: Policy, mesh: DeviceMesh, *, mixed_precision: MixedPrecisionPolicy, offload: OffloadPolicy) -> Policy:
    """Shard every decoder layer and vision block, then what remains, in place.

    Args:
        policy: built and frozen as it shall train, on any device; its shards end on the mesh's.
        mesh: one-dimensional mesh of the ranks.
        mixed_precision: in which type weights are gathered and gradients are reduced.
        offload: where shards live between uses.

    Returns:
        The policy.
    """
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": mixed_precision, "offload_policy": offload}
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
    or not; backward passes keep them too. Nothing happens for a policy without shards, nor within another `unsharded`.
    The weights must not change inside.
    """
    modules = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if policy.is_gathered or not modules:
        yield
        return
    with torch.inference_mode(False):  # an evaluation's inference tensors could not be trained on later
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.set_reshard_after_backward(False, recurse=False)
            module.unshard()
    policy.is_gathered = True
    try:
        yield
    finally:
        policy.is_gathered = False
        for module in modules:
            module.set_reshard_after_forward(module is not policy, recurse=False)
            module.set_reshard_after_backward(True, recurse=False)
            module.reshard()


def sharded_like(target: Tensor, value: Tensor) -> Tensor:
    """This rank's part of `value`, cut as `target` is; `value` itself where it is cut already or has another shape.

    All ranks hold the whole `value`.
    """
    if not isinstance(target, DTensor) or isinstance(value, DTensor) or value.shape != target.shape:
        return value
    # Without a source rank nothing is sent: every rank cuts its own part.
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def gathered(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors without shards, on the CPU of rank 0, and what else there is; empty on other ranks.

    To be called on all ranks.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if torch.distributed.get_rank() == 0:
            result[name] = whole.cpu() if isinstance(whole, Tensor) else whole
    return result
