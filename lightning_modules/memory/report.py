"""What a configured run needs in memory per rank, and how many frames a GPU holds: the command `check model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datamodules.video_datamodule import VideoDataModule
from lightning_modules.memory.estimate import estimate
from lightning_modules.memory.run import (
    architecture,
    count_parts,
    devices_are_open,
    model_config,
    setup_of,
    workload_of,
)
from lightning_modules.memory.sizes import Estimate, PartSize, Setup, Workload
from lightning_modules.policy_module import PolicyModule
from rewards.errors import UserError

GIBIBYTE = 1024**3
USABLE_SHARE = 0.95
"""Of a GPU's memory; the rest is for the CUDA context and what the allocator cannot use."""


@dataclass(frozen=True, kw_only=True)
class FrameLimit:
    """The most frames per video that a step takes."""

    frames: int
    """0 where not even one temporal patch fits."""
    by_prompt: bool
    """It is `max_prompt_tokens` that allows no more."""


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """An estimate with what it was made from."""

    model: str
    num_frames: int
    parts: Sequence[PartSize]
    setup: Setup
    work: Workload
    estimate: Estimate
    gpu_gib: float
    limit: FrameLimit
    ranks_assumed: bool
    """The configuration leaves the number of ranks to the machine, and none was given."""
    sharded_gib: float | None
    """Peak with everything spread over the ranks, where it is not."""

    @property
    def usable_gib(self) -> float:
        return self.gpu_gib * USABLE_SHARE

    @property
    def ok(self) -> bool:
        """The configured step fits."""
        return self.estimate.peak / GIBIBYTE <= self.usable_gib

    def render(self) -> str:
        blocks = (self._settings(), self._parts(), self._memory(), self._verdict())
        return "\n\n".join("\n".join(lines) for lines in blocks)

    def _settings(self) -> list[str]:
        setup, work = self.setup, self.work
        spread = ", sharded" if setup.sharded else ", replicated" if setup.ranks > 1 else ""
        kind = f"{work.group_size} completions each, of up to {work.completion_tokens:,} tokens"
        if not work.sampling:
            kind = f"a target of up to {work.completion_tokens:,} tokens each"
        return [
            f"model     {self.model}",
            f"ranks     {setup.ranks}{spread}"
            + (" (trainer.devices leaves it to the machine; give --ranks)" if self.ranks_assumed else ""),
            f"weights   {8 * setup.weight_bytes} bit, computed with in {8 * setup.compute_bytes} bit; activations "
            f"{'computed again in the backward pass' if setup.checkpointing else 'kept for the backward pass'}",
            f"step      {work.prompts} prompts per rank, {kind}; {work.micro_prompts} prompts per backward pass",
            f"prompt    {work.prompt_tokens:,} tokens, {work.patches:,} patches ({self.num_frames} frames)",
        ]

    def _parts(self) -> list[str]:
        rows = [(part.name, part.parameters, part.trainable) for part in self.parts]
        rows.append(("all", sum(part.parameters for part in self.parts), sum(part.trainable for part in self.parts)))
        return [f"{'part':<20}{'parameters':>18}{'trainable':>18}"] + [
            f"{name:<20}{total:>18,}{trainable:>18,}" for name, total, trainable in rows
        ]

    def _memory(self) -> list[str]:
        found = self.estimate
        rows = {
            "weights": found.weights,
            "reference": found.reference,
            "optimizer state": found.optimizer,
            "gradients": found.gradients,
            "autocast copies": found.casts,
            "gathered weights": found.gathered,
            "activations: language model": found.language_activations,
            "activations: vision tower": found.vision_activations,
            "activations: one layer backward": found.recomputed,
            "log-probabilities": found.head,
            "rollout: prompt cache": found.prompt_cache,
            "rollout: completion cache": found.completion_cache,
            "rollout: temporaries": found.rollout_temporaries,
        }
        rows |= {f"peak of {name}": size for name, size in found.phases.items()}
        return [f"{'memory per rank':<34}{'GiB':>10}"] + [
            f"{name:<34}{size / GIBIBYTE:>10.2f}" for name, size in rows.items() if size
        ]

    def _verdict(self) -> list[str]:
        phase, peak = max(self.estimate.phases.items(), key=lambda item: item[1])
        gpu = f"a GPU of {self.gpu_gib:g} GiB ({self.usable_gib:.1f} usable)"
        lines = [f"{self.num_frames} frames {'fit' if self.ok else 'do not fit'} {gpu}: {phase} takes "]
        lines[0] += f"{peak / GIBIBYTE:.1f} GiB."
        if self.limit.frames:
            by = "as many as data.max_prompt_tokens allows" if self.limit.by_prompt else "more do not fit"
            lines.append(f"Largest number of frames: {self.limit.frames} ({by}).")
        else:
            lines.append("No number of frames fits: weights, gradients, optimizer state or completions are too large.")
        if self.sharded_gib is not None:
            lines.append(
                f"Sharded over the {self.setup.ranks} ranks (FSDP2), it would take {self.sharded_gib:.1f} GiB."
            )
        elif not self.ok:
            lines.append(
                "What saves memory: more ranks with FSDP2, gradient_checkpointing, lora, freeze, an 8-bit optimizer, "
                "loss_config.beta: 0, fewer micro_batch_groups, pixels or completion tokens."
            )
        return lines


def check_memory(
    module: PolicyModule,
    data: VideoDataModule,
    trainer: Mapping[str, Any],
    *,
    ranks: int | None = None,
    gpu_gib: float = 80.0,
    text_tokens: int = 256,
    completion_tokens: int | None = None,
) -> MemoryReport:
    """Estimate a training step of a configured run.

    Args:
        module: SFT or GRPO module; nothing is loaded.
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
    config = model_config(module.model_name_or_path)
    sizes, setup = architecture(config), setup_of(module, trainer, ranks)
    parts = count_parts(module, config, setup)
    profile = data.train_frames

    def work_of(frames: int) -> Workload:
        return workload_of(
            module,
            data,
            replace(profile, num_frames=frames),
            int(trainer.get("accumulate_grad_batches") or 1),
            text_tokens=text_tokens,
            completion_tokens=completion_tokens,
        )

    def gib_of(frames: int) -> float:
        return estimate(sizes, parts, setup, work_of(frames)).peak / GIBIBYTE

    work = work_of(profile.num_frames)
    found = estimate(sizes, parts, setup, work)
    sharded_gib = None
    if setup.replicated:
        sharded_gib = estimate(sizes, parts, replace(setup, sharded=True), work).peak / GIBIBYTE
    return MemoryReport(
        model=module.model_name_or_path,
        num_frames=profile.num_frames,
        parts=parts,
        setup=setup,
        work=work,
        estimate=found,
        gpu_gib=gpu_gib,
        limit=frame_limit(
            lambda frames: gib_of(frames) <= gpu_gib * USABLE_SHARE,
            lambda frames: work_of(frames).prompt_tokens <= data.max_prompt_tokens,
            profile.temporal_patch_size,
        ),
        ranks_assumed=ranks is None and devices_are_open(trainer),
        sharded_gib=sharded_gib,
    )


def frame_limit(fits: Callable[[int], bool], allowed: Callable[[int], bool], step: int) -> FrameLimit:
    """The largest multiple of `step` that is allowed and fits; both get no easier with more frames."""
    frames = 0
    while allowed(frames + step):
        if not fits(frames + step):
            return FrameLimit(frames=frames, by_prompt=False)
        frames += step
    return FrameLimit(frames=frames, by_prompt=True)
