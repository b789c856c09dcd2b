"""FSDP2: weights, gradients and optimizer states in shards over all ranks, on one node or many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.checkpoint import save as save_shards
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_modules.policy.policy import Policy
from lightning_modules.policy.reference import CHECKPOINT_KEY as REFERENCE
from lightning_modules.policy.sharding import gathered, shard, sharded_like, unsharded
from lightning_modules.training.checkpoint_files import WholeCheckpoints
from lightning_modules.training.shared_folder import shared_folder


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism for the policy modules.

    Every rank has its own records. The modules shard their policies in `configure_model`. Evaluation gathers the
    weights once and keeps them whole until it has ended, so that ranks may generate answers of different lengths.

    bf16-mixed keeps float32 shards and gathers bfloat16 weights; gradients are reduced in float32 in any case.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        cpu_offload: bool = False,
        reduce_every_backward: bool = False,
        gather_once: bool = False,
        timeout_seconds: float = 1800.0,
        process_group_backend: str | None = None,
    ) -> None:
        """
        Args:
            save_distributed_checkpoint: write a folder in which every rank saves its own shards, which resumes with
                this strategy; false gathers one file on rank 0, which resumes with any strategy on any number of ranks.
            cpu_offload: keep shards, gradients and optimizer states in the host's memory.
            reduce_every_backward: exchange gradients after every micro-batch, not only after the last one of an
                optimizer step: more communication, but no rank ever holds whole gradients.
            gather_once: gather all weights once for the backward passes of a GRPO step, as for its rollout, and not
                again for each of them: less communication where there are many, as in slices, and more memory.
            timeout_seconds: how long a rank waits for the others in one exchange.
            process_group_backend: of torch.distributed; null takes nccl on GPUs and gloo on CPUs.
        """
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )
        self.cpu_offload = cpu_offload
        self.reduce_every_backward = reduce_every_backward
        self.gather_once = gather_once
        self._evaluation = ExitStack()

    def setup_environment(self) -> None:
        # Lightning's default would take the devices of a node for tensor parallelism and feed them the same records.
        self._data_parallel_size = self.num_nodes * self.num_processes
        if self._checkpoint_io is None:
            self.checkpoint_io = WholeCheckpoints()
        super().setup_environment()

    def shard(self, policy: Policy) -> Policy:
        """Shard a policy over all ranks, in place."""
        computed = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        # A sum over many ranks in bfloat16 would lose most of what each adds.
        mixed = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
        offload = CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda") if self.cpu_offload else OffloadPolicy()
        return shard(policy, self.device_mesh["data_parallel"], mixed_precision=mixed, offload=offload)

    def model_to_device(self) -> None:
        if not self.cpu_offload:
            super().model_to_device()
            return
        for child in self._module.children():
            if not isinstance(child, FSDPModule):
                child.to(self.root_device)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Accumulate gradients without exchanging them."""
        modules = [module for module in self._module.modules() if isinstance(module, FSDPModule)]
        for module in modules:
            module.set_requires_gradient_sync(self.reduce_every_backward, recurse=False)
        try:
            yield
        finally:
            for module in modules:
                module.set_requires_gradient_sync(True, recurse=False)

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None, "the trainer connects it before anything else"
        return self.lightning_module

    @property
    def _policy(self) -> Policy:
        (policy,) = (child for child in self._module.children() if isinstance(child, Policy))
        return policy

    def gathered_update(self) -> AbstractContextManager[None]:
        """Around the backward passes of an optimizer step."""
        return unsharded(self._policy) if self.gather_once else nullcontext()

    def _gather(self) -> None:
        self._evaluation.enter_context(unsharded(self._policy))

    def _reshard(self) -> None:
        self._evaluation.close()

    on_validation_start = on_test_start = on_predict_start = _gather
    on_validation_end = on_test_end = on_predict_end = _reshard

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of the optimizer; for a single file it is that of an unsharded one, on rank 0."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        state = optimizer.state_dict()
        values = {index: gathered(values) for index, values in state["state"].items()}
        return {"state": values, "param_groups": state["param_groups"]} if self.is_global_zero else {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a file or, under `save_distributed_checkpoint`, a folder that is complete where it has its name."""
        if not self._save_distributed_checkpoint:
            if REFERENCE in checkpoint:
                checkpoint[REFERENCE] = gathered(checkpoint[REFERENCE])
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)
            return
        reference = checkpoint.pop(REFERENCE, None)
        with shared_folder(self, Path(filepath)) as folder:
            super().save_checkpoint(checkpoint, folder, storage_options)
            if reference is not None:
                save_shards(reference, checkpoint_id=folder / REFERENCE)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimizer states; returns the rest, with an empty state dict.

        Takes the folders of `save_distributed_checkpoint` and the single files of all strategies.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            reference = {REFERENCE: path / REFERENCE} if (path / REFERENCE).is_dir() else {}
            return {**super().load_checkpoint(path, weights_only), **reference, "state_dict": {}}
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        weights, targets = checkpoint["state_dict"], self._module.state_dict()
        shards = {
            name: sharded_like(targets[name], value) if name in targets else value for name, value in weights.items()
        }
        self._module.load_state_dict(shards, strict=self._module.strict_loading)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            optimizer.load_state_dict(_shard_optimizer_state(state, optimizer))
        return {**checkpoint, "state_dict": {}}

    def _get_process_group_backend(self) -> str:
        if self._process_group_backend is None and self.cpu_offload and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"  # norms and checkpoints are computed where the shards are
        return super()._get_process_group_backend()


@contextmanager
def gradient_sync(strategy: Strategy, *, last: bool) -> Iterator[None]:
    """Let ranks exchange gradients in a backward pass only where it is the last one of an optimizer step."""
    if last or not isinstance(strategy, ParallelStrategy):
        yield
        return
    with strategy.block_backward_sync():
        yield


def gathered_update(strategy: Strategy) -> AbstractContextManager[None]:
    """Keep sharded weights gathered over the backward passes of an optimizer step, where the strategy is to."""
    return strategy.gathered_update() if isinstance(strategy, FSDP2Strategy) else nullcontext()


def whole_norm(norm: Tensor) -> Tensor:
    """The norm over all ranks of a norm of sharded gradients."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _shard_optimizer_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An unsharded optimizer state cut as the optimizer's parameters are; states of a parameter's shape only."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    parameter_of = dict(zip(indices, parameters, strict=True))
    shards = {
        index: {
            name: sharded_like(parameter_of[index], value) if isinstance(value, Tensor) and value.ndim else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {"state": shards, "param_groups": state["param_groups"]}
