"""What a reader reports about a media file: its numbers, or why it cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RE_ENCODE = "Fetch the file again or re-encode it (`ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4`)."


class VideoReadError(ValueError):
    """A media file that cannot be read as asked; the message holds the path, the cause and the mend.

    One string is the only argument, so that the error keeps its type on the way out of a data loader's worker.
    """


class TimeRangeError(VideoReadError):
    """A stretch of a video that the video does not have; the message holds the path, the range and the duration."""


def unreadable(path: str | Path, cause: str, mend: str = RE_ENCODE) -> VideoReadError:
    """The error for `path`: what is wrong with it (no full stop at the end), and what the user can do."""
    return VideoReadError(f"{path}: {cause}. {mend}")


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
