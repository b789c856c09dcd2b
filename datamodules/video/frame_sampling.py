"""Which frames of a clip the model sees, and at what size: pure arithmetic on metadata, no decoding.

The numbers are those of the published VideoRFT preprocessing (a fork of qwen-vl-utils): a fixed number of frames spread
evenly over the clip, first and last frame included, and sizes rounded to the vision tower's grid within a pixel budget.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from fractions import Fraction

from datamodules.video.types import FramePlan, PatchGeometry
from rewards.errors import UserError

MAX_ASPECT_RATIO = 200
MIN_BUDGET_SLACK = 1.05
"""The reference lets a frame reach 1.05 times `min_pixels` even where `max_pixels` is smaller, and keeps it there when
the two are equal, as they are in both published settings."""


@dataclass(frozen=True, kw_only=True)
class FrameConfig(PatchGeometry):
    """How many frames of a video are sampled and how large frames and images are."""

    num_frames: int = 16
    """Frames per video, a multiple of `temporal_patch_size`; a shorter clip gives what it has."""
    min_pixels: int = 128 * 28 * 28
    """Lower bound of a video frame's height x width; smaller frames are enlarged."""
    max_pixels: int = 128 * 28 * 28
    """Upper bound of a video frame's height x width, but never below 1.05 x `min_pixels`."""
    image_min_pixels: int = 4 * 28 * 28
    """Lower bound of an image's height x width."""
    image_max_pixels: int = 256 * 28 * 28
    """Upper bound of an image's height x width."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "temporal_patch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_frames < 1 or self.num_frames % self.temporal_patch_size:
            raise UserError(
                f"num_frames is {self.num_frames}; it must be a positive multiple of temporal_patch_size "
                f"({self.temporal_patch_size}), because that many frames form one temporal patch."
            )
        for low, high in (("min_pixels", "max_pixels"), ("image_min_pixels", "image_max_pixels")):
            smallest, largest = getattr(self, low), getattr(self, high)
            if smallest < 1:
                raise UserError(f"{low} is {smallest}; it must be at least 1 (a number like 128 * 28 * 28).")
            if largest < max(smallest, self.grid**2):
                raise UserError(
                    f"{high} is {largest}; it must be at least {low} ({smallest}) and one token's "
                    f"{self.grid} x {self.grid} = {self.grid**2} pixels. Raise {high} or lower {low}."
                )


TRAIN = FrameConfig(num_frames=16, min_pixels=128 * 28 * 28, max_pixels=128 * 28 * 28)
"""The published training setting."""
EVAL = FrameConfig(num_frames=32, min_pixels=256 * 28 * 28, max_pixels=256 * 28 * 28)
"""The published evaluation setting."""


def plan_frames(total_frames: int, fps: float, height: int, width: int, config: FrameConfig) -> FramePlan:
    """Choose frames and size of a video.

    As many frames as `config` asks for and the clip has, rounded down to whole temporal patches, at
    round(k * (total_frames - 1) / (n - 1)). `sample_fps` is n / total_frames * fps, so the temporal patches together
    last as long as the clip. A clip shorter than one temporal patch (an error in the reference) repeats its frames to
    fill one; `sample_fps` follows the same rule, so a one-frame clip's only patch lasts that frame's time, 1 / fps.

    Args:
        total_frames: frames that the clip shows.
        fps: frames per second of the clip; the average where the rate varies.
        height: frame height in pixels, rotation applied.
        width: frame width in pixels, rotation applied.
        config: frame count and pixel budget.

    Raises:
        UserError: no frames, no frame rate, or a side more than 200 times the other.
    """
    indices = frame_indices(total_frames, config)
    if not 0 < fps <= sys.float_info.max:  # integers beyond it are no frame rate either
        raise UserError(f"The clip's frame rate is {fps}; it must be a positive number. Re-encode the file.")
    ceiling = max(config.max_pixels, int(config.min_pixels * MIN_BUDGET_SLACK))
    planned_height, planned_width = _fit(height, width, config.grid, config.min_pixels, ceiling)
    return FramePlan(
        indices=indices,
        height=planned_height,
        width=planned_width,
        sample_fps=len(indices) / total_frames * fps,
    )


def frame_indices(total_frames: int, config: FrameConfig) -> tuple[int, ...]:
    """The frame numbers of `plan_frames`, which do not depend on size and rate.

    Exact fractions, rounded half to even: the reference's 32-bit floats agree below about 100,000 frames and drift
    beyond.

    Raises:
        UserError: the clip has no frames.
    """
    if total_frames < 1:
        raise UserError(f"The clip has {total_frames} frames; at least 1 is needed. Check or re-encode the file.")
    patch = config.temporal_patch_size
    count = max(min(config.num_frames, total_frames) // patch, 1) * patch
    if count == 1:
        return (0,)
    return tuple(round(Fraction(k * (total_frames - 1), count - 1)) for k in range(count))


def plan_image_size(height: int, width: int, config: FrameConfig) -> tuple[int, int]:
    """Size (height, width) of an image of `height` x `width` pixels within the image budget of `config`.

    Raises:
        UserError: a side is more than 200 times the other.
    """
    return _fit(height, width, config.grid, config.image_min_pixels, config.image_max_pixels)


def _fit(height: int, width: int, grid: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest multiples of `grid`, scaled with the aspect ratio kept where that leaves the pixel budget.

    The upper bound does not hold for very thin frames, whose short side cannot shrink below one grid cell, nor for a
    frame that is enlarged: its sides are rounded up.
    """
    if min(height, width) < 1:
        raise UserError(f"The media is {width} x {height} pixels; both sides must be at least 1.")
    aspect_ratio = max(height, width) / min(height, width)
    if aspect_ratio > MAX_ASPECT_RATIO:
        raise UserError(
            f"The media is {width} x {height} pixels, an aspect ratio of {aspect_ratio:.1f}; at most "
            f"{MAX_ASPECT_RATIO} is allowed. Crop it or leave the record out."
        )
    planned_height = max(grid, round(height / grid) * grid)
    planned_width = max(grid, round(width / grid) * grid)
    if planned_height * planned_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        planned_height = max(grid, math.floor(height / shrink / grid) * grid)
        planned_width = max(grid, math.floor(width / shrink / grid) * grid)
    elif planned_height * planned_width < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        planned_height = math.ceil(height * enlarge / grid) * grid
        planned_width = math.ceil(width * enlarge / grid) * grid
    return planned_height, planned_width
