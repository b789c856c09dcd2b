"""What a video reader is asked for, what it returns, and the errors it raises.

Shapes: F frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rewards.errors import UserError

RE_ENCODE = "Fetch the file again or re-encode it (`ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4`)."


class VideoReadError(UserError):
    """A media file that cannot be read as asked; the message holds the path, the cause and the remedy.

    One string is the only argument, so that the error keeps its type on the way out of a data loader's worker.
    """


class TimeRangeError(VideoReadError):
    """A stretch of a video that the video does not have; the message holds the path, the range and the duration."""


def unreadable(path: str | Path, cause: str, remedy: str = RE_ENCODE) -> VideoReadError:
    """The error for `path`: what is wrong with it (no full stop at the end), and what the user can do."""
    return VideoReadError(f"{path}: {cause}. {remedy}")


def missing_file(path: str | Path) -> VideoReadError:
    """The error for a path where no file is."""
    return unreadable(path, "the file does not exist", "Check the path and the data root.")


@dataclass(frozen=True, kw_only=True)
class PatchGeometry:
    """How a vision tower cuts frames into patches, and joins patches into tokens."""

    patch_size: int = 14
    """Side of a vision patch in pixels."""
    merge_size: int = 2
    """Patches per side that are merged into one token; sizes are multiples of `patch_size * merge_size`."""
    temporal_patch_size: int = 2
    """Frames per temporal patch; frame counts are multiples of it."""

    @property
    def grid(self) -> int:
        """Pixels per side of one merged vision token; heights and widths are multiples of it."""
        return self.patch_size * self.merge_size


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
class VideoMetadata:
    """Numbers of a video as a viewer sees it: edit list and rotation applied."""

    total_frames: int
    """Frames shown from start to end."""
    fps: float
    """Frames per second; the average where the rate varies."""
    height: int
    """Pixels, rotation applied."""
    width: int
    """Pixels, rotation applied."""
    duration: float
    """Seconds from the first frame's start to the last frame's end."""


@dataclass(frozen=True, kw_only=True)
class VideoClip:
    """Decoded, resized media: a video of F frames, or an image as one frame."""

    frames: Tensor
    """uint8 [F, 3, height, width], RGB."""
    sample_fps: float
    """Sampled frames per second; 0 for an image."""
    is_video: bool
