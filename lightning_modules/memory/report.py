"""What a configured run needs in memory per rank, and how many frames a GPU holds: the command `check model`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from datamodules.video_datamodule import VideoDataModule
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.memory.configs import RankConfig, model_config, rank_config
from lightning_modules.memory.sizes import (
    GIBIBYTE,
    TEXT_TOKENS,
    USABLE_FRACTION,
    largest_that_fits,
    media_grid,
    step_size,
)
from lightning_modules.memory.slices import SlicePeaks
from lightning_modules.memory.step_memory import StepMemory, StepSize
from lightning_modules.policy.trainable import trainable_table
from lightning_modules.policy_module import PolicyModule
from rewards.errors import UserError

Phases = Mapping[str, Counter[str]]
"""Bytes by label when each phase of a step takes most."""


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """A measured step with what it was made from."""

    model: str
    rank: RankConfig
    ranks_assumed: bool
    """The configuration leaves the number of ranks to the machine, and none was given."""
    parts: str
    """A table of the model's parameters."""
    num_frames: int
    prompt_tokens: int
    size: StepSize
    phases: Phases
    gpu_gib: float
    most_frames: int
    """That fit; 0 where not even one temporal patch does."""
    limited_by_prompt: bool
    """More frames would exceed `max_prompt_tokens`."""
    sharded_gib: float | None
    """Peak with everything spread over the ranks, where it is not."""
    slices: Mapping[int | None, int]
    """Completions per backward pass (None: all, with their prompts) -> bytes at the peak of an update. GRPO only."""
    slice_size: int | None
    """Completions per backward pass of the configured run; None is all with their prompts."""

    @property
    def usable_gib(self) -> float:
        return self.gpu_gib * USABLE_FRACTION

    @property
    def ok(self) -> bool:
        """The configured step fits."""
        return largest_gib(self.phases) <= self.usable_gib

    def render(self) -> str:
        parts = (self._settings(), self.parts, self._memory(), self._slices(), self._verdict())
        return "\n\n".join(part for part in parts if part)

    def _settings(self) -> str:
        rank, size = self.rank, self.size
        spread = ", sharded" if rank.sharded else ", replicated" if rank.replicated else ""
        assumed = " (trainer.devices leaves it to the machine; give --ranks)" if self.ranks_assumed else ""
        return (
            f"model     {self.model}\n"
            f"ranks     {rank.ranks}{spread}{assumed}\n"
            f"weights   {rank.weight_dtype}, computed with in {rank.compute_dtype}\n"
            f"step      {size.prompts} prompts per rank, completions of up to {size.completion_tokens:,} tokens\n"
            f"prompt    {self.prompt_tokens:,} tokens, {math.prod(size.grid):,} patches ({self.num_frames} frames)"
        )

    def _memory(self) -> str:
        """A row per label, a column per phase."""
        labels = dict.fromkeys(label for peak in self.phases.values() for label, size in peak.items() if size)
        rows = [("GiB per rank at the peak of", list(self.phases))]
        rows += [(label, [_gib(peak[label]) for peak in self.phases.values()]) for label in labels]
        rows.append(("all", [_gib(peak.total()) for peak in self.phases.values()]))
        return "\n".join(f"{name:<32}" + "".join(f"{cell:>16}" for cell in cells) for name, cells in rows)

    def _slices(self) -> str:
        """The update's peak by completions per backward pass."""
        if not self.slices:
            return ""
        rows = [("micro_batch_completions", ["null" if n is None else str(n) for n in self.slices])]
        rows.append(("update", [_gib(peak) for peak in self.slices.values()]))
        table = "\n".join(f"{name:<32}" + "".join(f"{cell:>16}" for cell in cells) for name, cells in rows)
        return (
            f"{table}\nThis run has micro_batch_completions: {'null' if self.slice_size is None else self.slice_size}."
        )

    def _verdict(self) -> str:
        phase = max(self.phases, key=lambda name: self.phases[name].total())
        lines = [
            f"{self.num_frames} frames {'fit' if self.ok else 'do not fit'} a GPU of {self.gpu_gib:g} GiB "
            f"({self.usable_gib:.1f} usable): {phase} takes {largest_gib(self.phases):.1f} GiB."
        ]
        if self.most_frames:
            by = "as many as data.max_prompt_tokens allows" if self.limited_by_prompt else "more do not fit"
            lines.append(f"Largest number of frames: {self.most_frames} ({by}).")
        else:
            lines.append("No number of frames fits: weights, gradients, optimizer state or completions are too large.")
        if self.sharded_gib is not None:
            lines.append(f"Sharded over the {self.rank.ranks} ranks (FSDP2), it would take {self.sharded_gib:.1f} GiB.")
        elif not self.ok:
            lines.append(
                "What saves memory: more ranks with FSDP2, gradient_checkpointing, lora, freeze, an 8-bit optimizer, "
                "loss_config.beta: 0, fewer micro_batch_completions, micro_batch_groups, pixels or completion tokens."
            )
        return "\n".join(lines)


def check_memory(
    module: PolicyModule,
    data: VideoDataModule,
    trainer: Mapping[str, Any],
    *,
    ranks: int | None = None,
    gpu_gib: float = 80.0,
    text_tokens: int = TEXT_TOKENS,
    completion_tokens: int | None = None,
) -> MemoryReport:
    """Measure a training step of a configured run with fake tensors.

    Args:
        module: SFT or GRPO module; it gets a fake policy, nothing is loaded.
        data: the run's data.
        trainer: the configuration under `trainer`.
        ranks: processes; None takes the trainer's.
        gpu_gib: memory of the GPU.
        text_tokens: of a prompt beside its media.
        completion_tokens: of every completion or target; None takes the limit of sampling.

    Raises:
        UserError: an unknown model, or sizes that are not positive.
    """
    for name, value in (("gpu_gib", gpu_gib), ("text_tokens", text_tokens), ("completion_tokens", completion_tokens)):
        if value is not None and value <= 0:
            raise UserError(f"--{name} is {value}; it must be > 0.")
    grpo, frames = module if isinstance(module, GRPOModule) else None, data.train_frames
    size, usable = (
        step_size(module, data, trainer, text_tokens, completion_tokens),
        gpu_gib * USABLE_FRACTION * GIBIBYTE,
    )
    config, rank = model_config(module.model_name_or_path), rank_config(module, trainer, ranks)
    slices: Mapping[int | None, int] = {}
    if grpo is not None:
        automatic = grpo.micro_batch_completions == "auto"
        grpo.micro_batch_completions = None if automatic else grpo.micro_batch_completions
        peaks = SlicePeaks(StepMemory(module, config, rank), size)
        slices = peaks.table()
        grpo.micro_batch_completions = peaks.fitting(usable) if automatic else grpo.micro_batch_completions
    sharded_gib = None
    if rank.replicated:
        sharded_gib = largest_gib(StepMemory(module, config, replace(rank, sharded=True)).phases(size))
    memory = StepMemory(module, config, rank)
    phases = memory.phases(size)

    def size_of(patches: int) -> StepSize:
        return replace(size, grid=media_grid(replace(frames, num_frames=patches * frames.temporal_patch_size)))

    def prompt_tokens(of: StepSize) -> int:
        return math.prod(of.grid) // frames.merge_size**2 + text_tokens

    allowed = 0
    while prompt_tokens(size_of(allowed + 1)) <= data.max_prompt_tokens:
        allowed += 1
    most = allowed if phases["optimizer step"].total() <= usable else 0
    for phase in (memory.rollout, memory.update) if grpo else (memory.update,):
        most = largest_that_fits(lambda patches, phase=phase: phase(size_of(patches)).total(), usable, most)
    return MemoryReport(
        model=module.model_name_or_path,
        rank=rank,
        ranks_assumed=ranks is None and str(trainer.get("devices") or 1) in ("auto", "-1"),
        parts=trainable_table(memory.policy),
        num_frames=frames.num_frames,
        prompt_tokens=prompt_tokens(size),
        size=size,
        phases=phases,
        gpu_gib=gpu_gib,
        most_frames=most * frames.temporal_patch_size,
        limited_by_prompt=most == allowed,
        sharded_gib=sharded_gib,
        slices=slices,
        slice_size=None if grpo is None else cast("int | None", grpo.micro_batch_completions),
    )


def largest_gib(phases: Phases) -> float:
    """Peak of the largest phase."""
    return max(peak.total() for peak in phases.values()) / GIBIBYTE


def _gib(size: float) -> str:
    return f"{size / GIBIBYTE:.2f}"
