"""What a memory estimate is made from, and what it says: sizes of model, setup and work, and bytes.

The letters are those of `memory_estimate`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a Qwen2.5-VL that decide its memory."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    """Input and output embeddings are one parameter."""
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    vision_heads: int
    vision_full_layers: int
    """Tower layers that attend over a whole temporal patch; the others attend within windows."""
    merge: int
    """Patches per side that become one token."""
    patch_values: int
    """Numbers in one patch."""

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """Parameters of one part of the model."""

    name: str
    parameters: int
    trainable: int
    linear: int
    """Parameters of linear layers, which autocast copies; output embeddings are not among them."""
    bytes_each: float
    largest_layer: int
    """Parameters that are gathered at a time under sharding."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the model computes and where it lives."""

    weight_bytes: int
    trained_bytes: int
    """Per trainable number, its gradient, and each of the two moments of 32-bit AdamW; adapters on weights of 16 bit
    have 32."""
    compute_bytes: int
    checkpointing: bool
    chunk_rows: int
    """`logprob_chunk_size`."""
    vision_frozen: bool
    """No parameter of tower and merger trains: features are computed once, without gradient."""
    reference: bool
    """A second, frozen copy of the weights."""
    optimizer_bytes: float
    """State per trainable number."""
    fused_optimizer: bool
    """The step needs no copy of what it updates."""
    ranks: int
    sharded: bool
    """Weights, gradients and optimizer state are spread over the ranks (FSDP)."""
    cuda: bool
    offloaded: bool = False
    """Shards live in the host's memory."""
    reduce_every_backward: bool = False
    """Sharded gradients are exchanged after every micro-batch."""

    @property
    def share(self) -> float:
        """Of weights, gradients and optimizer state on this rank's device."""
        return 0.0 if self.offloaded else 1 / self.ranks if self.sharded else 1.0

    @property
    def replicated(self) -> bool:
        return self.ranks > 1 and not self.sharded

    @property
    def mixed(self) -> bool:
        """Autocast casts weights at their use; sharded weights are gathered in the type of the computation."""
        return self.compute_bytes != self.weight_bytes and not self.sharded

    @property
    def residual_bytes(self) -> int:
        """The residual stream starts at embeddings, which autocast leaves alone."""
        return self.weight_bytes if self.mixed else self.compute_bytes


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One rank's share of a step."""

    prompts: int
    """B."""
    micro_prompts: int
    """m."""
    group_size: int
    """G; 1 in fine-tuning."""
    prompt_tokens: int
    """P."""
    completion_tokens: int
    """C."""
    patches: int
    """N of one prompt."""
    sampling: bool
    """There is a rollout, and prompts are shared."""
    micro_batches: int = 1
    """Backward passes per optimizer step."""

    @property
    def row_tokens(self) -> int:
        """L = m (P + G (C - 1)): the last token of a completion is no input."""
        return self.micro_prompts * (self.prompt_tokens + self.group_size * (self.completion_tokens - 1))

    @property
    def predicted(self) -> int:
        return self.micro_prompts * self.group_size * self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on one rank."""

    weights: float
    reference: float
    optimizer: float
    gradients: float
    """All of them, and DDP's buckets of the same size."""
    casts: float
    """Autocast's copies of linear weights, kept from forward to backward; with checkpointing none is."""
    gathered: float
    """Whole layers that sharding gathers for an update."""
    language_activations: float
    vision_activations: float
    """Both: what the forward pass of one micro-batch leaves for the backward pass."""
    recomputed: float
    """One checkpointed layer's intermediates with their gradients, the larger of decoder and tower."""
    head: float
    """Temporaries of the log-probabilities."""
    prompt_cache: float
    completion_cache: float
    rollout_temporaries: float
    """The larger of prefill and drawing a token, and under sharding the gathered model."""
    update_extra: float
    """Most that an update adds to weights, reference and optimizer state, gradients included."""
    step_extra: float
    """The same of the optimizer's step."""

    @property
    def resident(self) -> float:
        """There all the time."""
        return self.weights + self.reference + self.optimizer

    @property
    def phases(self) -> dict[str, float]:
        """Peak of each phase of a step; a rollout finds the gradients of the step before."""
        rollout = self.prompt_cache + self.completion_cache + self.rollout_temporaries
        peaks = {"rollout": self.resident + self.gradients + rollout} if rollout else {}
        return peaks | {
            "update": self.resident + self.update_extra,
            "optimizer step": self.resident + self.step_extra,
        }

    @property
    def peak(self) -> float:
        return max(self.phases.values())
