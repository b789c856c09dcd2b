"""What a video reader is asked for and what it returns.

Shapes: F frames.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FramePlan:
    """Which frames of a clip are read and at what size; a pure function of the clip's metadata."""

    indices: tuple[int, ...]
    """Frame numbers in display order, length F; F is a multiple of the temporal patch size."""
    height: int
    width: int
    sample_fps: float
    """Sampled frames per second of video."""


@dataclass(frozen=True, kw_only=True)
class VideoClip:
    """Decoded, resized media: a video of F frames, or an image as one frame."""

    frames: Tensor
    """uint8 [F, 3, height, width], RGB."""
    sample_fps: float
    """Sampled frames per second; 0 for an image."""
    is_video: bool
