"""An open video file in PyAV: the right stream, one decoder thread, upright RGB frames and what the header claims."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from datamodules.video.types import missing_file, unreadable

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

DECODER_THREADS = 1
"""Per file: data loader workers already read several files at once."""


class VideoFile:
    """An open file and its first video stream that is no cover picture; a context manager.

    Args:
        path: a file that FFmpeg can demux.

    Raises:
        VideoReadError: the file does not exist, is no media file or has no video stream.
    """

    def __init__(self, path: str | Path) -> None:
        from av.video.reformatter import VideoReformatter

        self.path = Path(path)
        self._reformatter = VideoReformatter()
        self._open()

    def _open(self) -> None:
        import av

        try:
            # An absolute path, or FFmpeg takes "a:b.mp4" for a network protocol; titles in other encodings are legal.
            self.container = av.open(str(self.path.absolute()), metadata_errors="ignore")
        except FileNotFoundError as error:
            raise missing_file(self.path) from error
        except av.FFmpegError as error:
            raise unreadable(self.path, f"it cannot be opened as a video ({error})") from error
        streams = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            self.container.close()
            raise unreadable(self.path, "it has no video stream", "Leave the record out or name another file.")
        self.stream = streams[0]
        self.stream.thread_count = DECODER_THREADS
        self.stream.thread_type = "NONE"

    def reopen(self) -> None:
        """Go back to the beginning, with a fresh decoder: sure in every container, unlike a seek."""
        self.container.close()
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def rgb(self, frame: VideoFrame) -> Tensor:
        """The decoded frame as uint8 [3, H, W], turned upright; colors equal `frame.to_ndarray(format="rgb24")`."""
        array = self._reformatter.reformat(frame, format="rgb24", threads=DECODER_THREADS).to_ndarray()
        return upright(torch.from_numpy(array).permute(2, 0, 1), _display_matrix(frame))

    @property
    def nominal_rate(self) -> Fraction:
        """Frames per second as the container or the codec claims."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            raise unreadable(self.path, "its frame rate is unknown")
        return rate

    @property
    def declared_seconds(self) -> float | None:
        """Length of the video stream by the file's header, None where the format has no such field.

        Elsewhere FFmpeg estimates a duration from the bit rate, which proves nothing.
        """
        formats = self.container.format.name.split(",")
        if "mp4" in formats and self.stream.duration is not None:
            return float(self.stream.duration * self.stream.time_base)
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self.stream.metadata.get("DURATION", ""))
        if "matroska" in formats and tag:
            hours, minutes, seconds = tag.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        return None


def upright(image: Tensor, matrix: Sequence[int]) -> Tensor:
    """Apply a display matrix (ISO 14496-12): mirror and turn by the nearest multiple of 90 degrees.

    Args:
        image: [..., H, W].
        matrix: a, b, u, c, d, v, x, y, w; a pixel (p, q) = (column, row) is shown at (a p + c q + x, b p + d q + y).

    Returns:
        [..., H, W] or [..., W, H].
    """
    a, b, _, c, d, *_ = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, column_sign, row_sign = image.transpose(-2, -1), c, b
    else:
        column_sign, row_sign = a, d
    flipped = [axis for axis, sign in ((-1, column_sign), (-2, row_sign)) if sign < 0]
    return image.flip(flipped) if flipped else image


def _display_matrix(frame: VideoFrame) -> list[int]:
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV lists all side data of a frame or none, and raises where it lacks the name of one (EXIF in Motion JPEG).
        # Its own reading of the matrix still works; it cannot tell a mirrored picture from a turned one.
        angle = math.radians(frame.rotation)
        sine, cosine = round(math.sin(angle)), round(math.cos(angle))
        return [cosine, -sine, 0, sine, cosine, 0, 0, 0, 1]
    if matrix is None:
        return [1, 0, 0, 0, 1, 0, 0, 0, 1]
    return np.frombuffer(matrix, dtype=np.int32).tolist()
