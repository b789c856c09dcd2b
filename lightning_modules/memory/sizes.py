"""The size of a configured step, and the largest one that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from datamodules.video.frame_sampling import MIN_BUDGET_SLACK, FrameConfig
from datamodules.video_datamodule import VideoDataModule
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.memory.step_memory import StepSize
from lightning_modules.policy_module import PolicyModule

GIBIBYTE = 1024**3
USABLE_FRACTION = 0.95
"""Of a GPU's memory; the rest is for the CUDA context and what the allocator cannot use."""
TEXT_TOKENS = 256
"""Of a prompt beside its media, where nobody says."""


def step_size(
    module: PolicyModule,
    data: VideoDataModule,
    trainer: Mapping[str, Any],
    text_tokens: int = TEXT_TOKENS,
    completion_tokens: int | None = None,
) -> StepSize:
    """One rank's part of a step of full prompts; completions take `completion_tokens` or the limit of sampling."""
    grpo = module if isinstance(module, GRPOModule) else None
    return StepSize(
        prompts=data.batch_size,
        grid=media_grid(data.train_frames),
        text_tokens=text_tokens,
        completion_tokens=completion_tokens or (grpo.sampling if grpo else module.evaluation).max_new_tokens,
        accumulated=1 if grpo else int(trainer.get("accumulate_grad_batches") or 1),
    )


def media_grid(frames: FrameConfig) -> tuple[int, int, int]:
    """Patches of a video of about square frames that fill their pixel budget, or of an image where that is larger."""
    count = frames.num_frames // frames.temporal_patch_size
    pixels = max(frames.max_pixels, int(frames.min_pixels * MIN_BUDGET_SLACK))
    if frames.image_max_pixels > count * pixels:
        count, pixels = 1, frames.image_max_pixels
    tokens = pixels // frames.grid**2
    rows = math.isqrt(tokens)
    return count, rows * frames.merge_size, tokens // rows * frames.merge_size


def largest_that_fits(size_of: Callable[[int], float], limit: float, most: int) -> int:
    """The largest count <= `most` whose size is within a limit, 0 if none is.

    At every moment of a step memory grows by a constant number of bytes per frame, so its peak is convex in the number
    of frames: where the line between two counts meets the limit, frames fit. A few sizes are enough.
    """
    if most == 0 or (above := size_of(most)) <= limit:
        return most
    if most == 1 or (below := size_of(1)) > limit:
        return 0
    fits = 1
    while most - fits > 1:
        step = int((limit - below) / (above - below) * (most - fits))
        count = min(fits + max(step, 1), most - 1)
        size = size_of(count)
        if size <= limit:
            fits, below = count, size
        else:
            most, above = count, size
    return fits
