"""What a reader of media is asked for, what it returns, and the errors it raises.

Shapes: F frames. The reader process imports this file, so it must not import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ReaderName = str
"""A key of `READERS` in `decoding.py`."""

RE_ENCODE = "Fetch the file again or re-encode it (`ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4`)."


LAYOUT = "\n\t\u00a0\u3000\u200c\u200d"
"""What texts of several lines and of all scripts need: line breaks, tabs, fixed and wide spaces, joiners."""


def printable(text: str, keep: str = "") -> str:
    """The text with control characters, line breaks, half surrogates and marks of direction as escapes.

    Names of files and texts of records come from strangers; a terminal would obey what they hold, and a page would show
    it in another order.

    Args:
        text: of any origin.
        keep: characters that are left as they are, `LAYOUT` for whole texts.
    """
    return "".join(char if char.isprintable() or char in keep else ascii(char)[1:-1] for char in text)


class VideoReadError(UserError):
    """A media file that cannot be read as asked; the message holds the path, the cause and the remedy.

    One string is the only argument, so that the error keeps its type on the way out of a data loader's worker.
    """


class TimeRangeError(VideoReadError):
    """A stretch of a video that the video does not have; the message holds the path, the range and the duration."""


class ReaderStartError(RuntimeError):
    """The process that reads media files does not start: no file's fault."""


class MediaPathError(VideoReadError):
    """A path where no media file is, or one that leads out of the data root."""


def unreadable(path: str | Path, cause: str, remedy: str = RE_ENCODE) -> VideoReadError:
    """The error for `path`: what is wrong with it (no full stop at the end), and what the user can do."""
    return VideoReadError(f"{path}: {cause}. {remedy}")


def missing_file(path: str | Path) -> MediaPathError:
    """The error for a path where no file is."""
    return MediaPathError(f"{path}: the file does not exist. Check the path and the data root.")


@dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """What reading one media file may cost, and how closely it is looked at."""

    timeout: float | None = 120.0
    """Seconds of wall-clock time for one file, in a process of its own that is killed then; null reads in the loader's
    process and waits for ever."""
    strict_decoding: bool = True
    """Refuse a video in which the decoder or the container reports any damage; else only what cannot be decoded."""
    max_pixels: int = 2**26
    """Height x width of an image or a video frame, before it is decoded."""
    max_seconds: float = 100_000.0
    """Length of a video as its header says; more than the 26.5 hours after which the clock of MPEG-TS starts again."""

    def __post_init__(self) -> None:
        for name in ("timeout", "max_pixels", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                null = " or null" if name == "timeout" else ""
                raise UserError(f"media.{name} is {value}; it must be a positive number{null}.")


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
class FileIdentity:
    """A media file as the disk knows it; another content has another one."""

    path: str
    """Absolute, symbolic links resolved."""
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds; programs may set it back."""
    changed: int
    """Nanoseconds; the kernel sets it with every change of content or metadata."""


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
