"""The memory of one training step, phase by phase: the step's own code with fake tensors.

Every completion reaches its token limit. Not seen: the workspaces of kernels, the CUDA context and fragmentation of the
allocator, the rewards' own models, loader processes.

Shapes: B prompts, G completions per prompt, P prompt tokens, C completion tokens.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from datamodules.collate import SFTCollator, SFTSample
from datamodules.types import PromptBatch
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.memory.configs import RankConfig
from lightning_modules.memory.fake_policy import TEXT_TOKEN, fake_policy, fake_prompt, tensor_bytes
from lightning_modules.memory.memory_meter import MemoryMeter
from lightning_modules.policy.group_cache import GroupCache
from lightning_modules.policy.reference import ReferencePolicy
from lightning_modules.policy_module import PolicyModule
from lightning_modules.rollouts.transformers_engine import TransformersEngine
from lightning_modules.rollouts.types import Completion, RolloutGroup
from lightning_modules.training.optim import build_optimizer
from lightning_modules.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from transformers import PretrainedConfig

STATE_BYTES_8BIT = 2 + 2 * 4 / 256
"""Of 8-bit AdamW per number: two moments, a float32 scale of each for 256 numbers."""


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """One rank's part of a step. Group size and micro-batches are the module's."""

    prompts: int
    """B."""
    grid: tuple[int, int, int]
    """Temporal, vertical and horizontal patches of every prompt's video."""
    text_tokens: int
    """Of a prompt, beside its video."""
    completion_tokens: int
    """C of every completion or fine-tuning target."""
    accumulated: int = 1
    """Batches per optimizer step in fine-tuning."""


class StepMemory:
    """Measures the steps of one configured run: bytes by label when each phase takes most.

    A phase finds what the ones before it leave; the first finds the gradients and the optimizer state of a step before.

    Args:
        module: SFT or GRPO module; it gets a fake policy.
        config: of its model.
        rank: how one rank computes.
    """

    def __init__(self, module: PolicyModule, config: PretrainedConfig, rank: RankConfig) -> None:
        self.module = module
        self.grpo = module if isinstance(module, GRPOModule) else None
        self.rank = rank
        self.meter = MemoryMeter()
        self.policy, stored = fake_policy(module, config, rank, self.meter)
        kept = 0 if rank.offloaded else round(stored / (rank.ranks if rank.sharded else 1))
        self.meter.live["weights"] = kept
        module.policy, module.engine = self.policy, TransformersEngine(self.policy)
        if self.grpo is not None:
            has_reference = self.grpo.loss_config.beta > 0
            # A second copy would compute as the policy does.
            self.grpo.reference = ReferencePolicy(self.policy) if has_reference else None
            self.meter.live["reference"] = kept if has_reference and module.lora is None else 0
            self.grpo.configure_model()
        self.trained = self._trained_parameters()
        self.optimizer = self._optimizer_with_state()
        self._completion_tokens = 0
        self._label_forward_passes()

    def phases(self, size: StepSize) -> dict[str, Counter[str]]:
        """All phases of a step."""
        peaks = {} if self.grpo is None else {"rollout": self.rollout(size)}
        return peaks | {"update": self.update(size), "optimizer step": self.optimizer_step()}

    def rollout(self, size: StepSize) -> Counter[str]:
        """Sampling: prefill, the first token, the one that ends in the last step's cache, and the last."""
        assert self.grpo is not None, "fine-tuning has no rollout"
        self._completion_tokens = size.completion_tokens
        sampling = replace(self.grpo.sampling, max_new_tokens=min(3, size.completion_tokens))
        self._restart(gathered=tensor_bytes(self.policy.parameters()))
        with self._autocast(), self.meter.labeled("sampling"):
            batch = self.policy.with_frozen_features(self._prompts(size))
            seeds = list(range(size.prompts))
            self.grpo.engine.generate(batch, sampling, group_size=self.grpo.group_size, seeds=seeds)
        return self.meter.peak

    def update(
        self, size: StepSize, *, in_slices_of: int | Literal["configured"] | None = "configured"
    ) -> Counter[str]:
        """Forward and backward passes; of policy gradients with so many completions per backward pass."""
        if self.grpo is not None and in_slices_of != "configured":
            self.grpo.update.micro_batch_completions = in_slices_of
        batch = self._prompts(size)
        if self.grpo is not None:
            with self._autocast():
                batch = self.policy.with_frozen_features(batch)  # the rollout's are kept
        self._restart(gathered=self._gathered_in_update(size))
        if self.grpo is None:
            self._fine_tuning(batch, size)
        else:
            self._policy_update(self.grpo, batch, size)
        return self.meter.peak

    def optimizer_step(self) -> Counter[str]:
        """Clipping and the optimizer's step."""
        self._restart()
        if self.optimizer is not None:
            with self.meter.labeled("optimizer's temporaries"):
                clip_grad_norm_(self.trained.values(), 1.0)
                self.optimizer.step()
        return self.meter.peak

    def _policy_update(self, module: GRPOModule, batch: PromptBatch, size: StepSize) -> None:
        completion = Completion(
            token_ids=torch.full((size.completion_tokens,), TEXT_TOKEN),
            text="",
            sampling_logprobs=torch.zeros(size.completion_tokens),
            policy_logprobs=torch.zeros(size.completion_tokens),
            truncated=False,
        )
        micro_batches = module.update.prepare(
            batch,
            [RolloutGroup(prompt=prompt, completions=(completion,) * module.group_size) for prompt in batch.prompts],
            torch.ones(size.prompts, module.group_size),
            mean_over_ranks=lambda counts: counts,
            max_over_ranks=lambda count: count,
        )
        self._drop_gradients()
        for micro_batch in micro_batches[:2]:  # the third finds what the second found, and so does a third slice
            del micro_batch.slices[2:]
            losses = module.update.losses(micro_batch, StepMetrics())
            for _ in range(micro_batch.backward_passes):
                with self._autocast():
                    loss = next(losses)
                self._backward(loss)

    def _fine_tuning(self, prompts: PromptBatch, size: StepSize) -> None:
        target = torch.full((size.completion_tokens,), TEXT_TOKEN)
        samples = [SFTSample(prompt=prompt, target_ids=target) for prompt in prompts.prompts]
        batch = self.policy.with_positions(SFTCollator(pad_token_id=TEXT_TOKEN)(samples))
        for number in range(min(size.accumulated, 2)):
            with self._autocast():
                loss = -self.policy.target_statistics(batch).logprobs.sum()
            if number == 0:
                self._drop_gradients()  # Lightning drops those of the step before only after the forward pass
            self._backward(loss)

    def _backward(self, loss: Tensor) -> None:
        with self.meter.labeled("backward pass"):
            loss.backward()

    def _drop_gradients(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None

    def _restart(self, *, gathered: int = 0) -> None:
        """Begin a phase, in which a sharded policy holds so many bytes of gathered weights."""
        self.meter.live["gathered by FSDP2"] = gathered if self.rank.sharded else 0
        self.meter.restart()

    def _gathered_in_update(self, size: StepSize) -> int:
        """FSDP2 keeps gathered what is no layer. Of the layers one computes while the next one arrives, and the
        gradient of one leaves. Without an exchange after every micro-batch, whole gradients wait for the last one."""
        layers = [tensor_bytes(block.parameters()) for block in self.policy.family.blocks(self.policy.model)]
        several = size.accumulated > 1
        if self.grpo is not None:
            groups = self.grpo.micro_batch_groups or size.prompts
            several = groups < size.prompts or self.grpo.update.micro_batch_completions is not None
        waiting = 0
        if several and not self.rank.reduce_every_backward:
            waiting = sum(p.numel() for p in self.policy.parameters() if p.requires_grad)
        every = tensor_bytes(self.policy.parameters())
        whole = every if self.grpo is not None and self.rank.gather_once else every - sum(layers) + 2 * max(layers)
        return whole + max(layers) + waiting * self.rank.weight_dtype.itemsize

    def _autocast(self) -> AbstractContextManager[Any]:
        """As Lightning's mixed precision, which caches no casts."""
        if self.rank.compute_dtype == self.rank.weight_dtype:
            return nullcontext()
        return torch.autocast("cpu", self.rank.compute_dtype, cache_enabled=False)

    def _trained_parameters(self) -> dict[nn.Parameter, nn.Parameter]:
        """What the optimizer updates for each of the policy's parameters that train, itself or this rank's shard;
        empty where that is in the host's memory."""
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._gradient_arrived)
        if self.rank.replicated:
            self.meter.live["DDP's buckets"] = tensor_bytes(trained)
        if not self.rank.sharded:
            return dict(zip(trained, trained, strict=True))
        dtype, ranks = self.rank.weight_dtype, self.rank.ranks
        return {
            parameter: nn.Parameter(self.meter.fake((-(-len(parameter) // ranks), *parameter.shape[1:]), dtype, None))
            for parameter in trained
            if not self.rank.offloaded
        }

    def _gradient_arrived(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:  # a pass that reaches the parameter with nothing
            return
        if not self.rank.sharded:
            self.meter.relabel(parameter.grad, "gradients")
            return
        parameter.grad = None
        if parameter in self.trained:
            self._make_gradient(self.trained[parameter])

    def _make_gradient(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            parameter.grad = self.meter.fake(parameter.shape, parameter.dtype, "gradients")

    def _optimizer_with_state(self) -> Optimizer | None:
        """An optimizer after its first step, and the gradients of that; None where a step needs nothing here."""
        for parameter in self.trained.values():
            self._make_gradient(parameter)
        if self.module.optimizer_config.name != "adamw":
            numbers = sum(parameter.numel() for parameter in self.trained.values())
            self.meter.live["optimizer state"] = round(STATE_BYTES_8BIT * numbers)
            return None
        if not self.trained:
            return None
        optimizer = build_optimizer(self.trained.values(), self.module.optimizer_config)
        for group in optimizer.param_groups:
            group["foreach"] = self.rank.cuda
        with self.meter.labeled("optimizer state"):
            optimizer.step()
        return optimizer

    def _label_forward_passes(self) -> None:
        policy, meter = self.policy, self.meter
        decode = policy.decode

        def decode_to_last_token(tokens: Tensor, position: Tensor, cache: GroupCache) -> Tensor:
            for tensor in chain.from_iterable(cache.prompts):
                meter.relabel(tensor, "prompt cache")
            logits = decode(tokens, position, cache)
            with meter.labeled("completion cache"):
                cache.skip(self._completion_tokens - 2)
            return logits

        policy.decode = decode_to_last_token
        for owner, name, label in (
            (policy.family, "encode_vision", "vision tower"),
            (policy.family.language_model(policy.model), "forward", "language model"),
        ):
            setattr(owner, name, meter.labeled(label)(getattr(owner, name)))

    def _prompts(self, size: StepSize) -> PromptBatch:
        prompts = [fake_prompt(self.policy, self.meter, size.grid, size.text_tokens) for _ in range(size.prompts)]
        return self.policy.collate(prompts)
