"""An open video file in PyAV: the right stream, one decoder thread, upright RGB frames and what the header claims."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from datamodules.video.types import MediaConfig, missing_file, unreadable

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

DECODER_THREADS = 1
"""Per file: data loader workers already read several files at once."""
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,gif,ivf,h264,hevc"
"""FFmpeg's names of containers that may be read. Playlists and lists of files (hls, dash, concat) are not among them:
they read other files, in other folders and from the network."""
STRICT = {"err_detect": "crccheck+bitstream+buffer"}
"""The decoder looks for damage where it can. It reports what it finds and paints over it; see `complaints`. Its option
to stop instead, "explode", finds no more, and stops at files in which references are missing rightly."""


class VideoFile:
    """An open file and its first video stream that is no cover picture; a context manager.

    Args:
        path: a file that FFmpeg can demux.
        media: what it may cost and how strictly it is decoded.

    Raises:
        VideoReadError: the file does not exist, is no media file, has no video stream, or is larger than allowed.
    """

    def __init__(self, path: str | Path, media: MediaConfig) -> None:
        from av.video.reformatter import VideoReformatter

        self.path = Path(path)
        self.media = media
        self._reformatter = VideoReformatter()
        self._open()

    def _open(self) -> None:
        import av
        from av.stream import Disposition

        try:
            # An absolute path, or FFmpeg takes "a:b.mp4" for a network protocol; titles in other encodings are legal.
            self.container = av.open(
                str(self.path.absolute()),
                metadata_errors="ignore",
                options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
            )
        except FileNotFoundError as error:
            raise missing_file(self.path) from error
        except av.ArgumentError as error:
            raise unreadable(self.path, f"it cannot be opened as a video (its format is none of {FORMATS})") from error
        except av.FFmpegError as error:
            raise unreadable(self.path, f"it cannot be opened as a video ({error})") from error
        streams = [
            stream for stream in self.container.streams.video if not stream.disposition & Disposition.attached_pic
        ]
        if not streams:
            self.container.close()
            raise unreadable(self.path, "it has no video stream", "Leave the record out or name another file.")
        self.stream = streams[0]
        self.stream.thread_count = DECODER_THREADS
        self.stream.thread_type = "NONE"
        if self.media.strict_decoding:
            self.stream.codec_context.options = dict(STRICT)
        try:
            self._check_limits()
        except BaseException:
            self.container.close()
            raise

    def _check_limits(self) -> None:
        """Refuse what is too large, before anything of it is decoded."""
        self._check_pixels(self.stream.codec_context.width, self.stream.codec_context.height)
        seconds = (self.container.duration or 0) / 1_000_000
        if seconds > self.media.max_seconds:
            raise unreadable(
                self.path,
                f"it lasts {seconds:,.0f} s by its header, more than media.max_seconds {self.media.max_seconds:,.0f}",
                "Cut it, or raise the limit.",
            )

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self.media.max_pixels:
            raise unreadable(
                self.path,
                f"its frames have {width} x {height} pixels, more than media.max_pixels {self.media.max_pixels:,}",
                "Re-encode it smaller, or raise the limit.",
            )

    def reopen(self) -> None:
        """Go back to the beginning, with a fresh decoder: sure in every container, unlike a seek."""
        self.container.close()
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.container.close()

    @contextmanager
    def complaints(self) -> Iterator[list[tuple[int, str, str]]]:
        """(level, part, message) of what FFmpeg reports as errors within the block, filled while it runs.

        Much damage is told in this way alone: the function that finds it returns normally. Empty unless decoding is
        strict.
        """
        import av

        if not self.media.strict_decoding:
            yield []
            return
        before = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture(local=True) as messages:
                yield messages
        finally:
            av.logging.set_level(before)

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """The decoded frame as uint8 [H, W, 3], turned upright; colors equal `frame.to_ndarray(format="rgb24")`.

        Raises:
            VideoReadError: the frame is larger than allowed: the size may change within a file.
        """
        self._check_pixels(frame.width, frame.height)
        array = self._reformatter.reformat(frame, format="rgb24", threads=DECODER_THREADS).to_ndarray()
        return upright(array, _display_matrix(frame))

    @property
    def nominal_rate(self) -> Fraction:
        """Frames per second as the container or the codec claims."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            raise unreadable(self.path, "its frame rate is unknown")
        return rate

    def missing_seconds(self, first: float, end: float, packets: int) -> tuple[float, float]:
        """How much of the video its header promises and is not there, and how much it promises.

        Args:
            first: when the first frame appears, in seconds on the file's clock.
            end: when the last one ends.
            packets: how many packets there are.
        """
        declared = self._declared_seconds
        if self.container.format.name == "avi" and self.stream.frames:
            declared = self.stream.frames / float(self.nominal_rate)
            return declared * (1 - packets / self.stream.frames), declared
        if declared is None:
            return 0.0, 0.0
        # Matroska's field is meant as a length, and FFmpeg writes the time of the end there: files that start late
        # have either.
        if "matroska" in self.container.format.name and declared >= first:
            declared -= max(first, 0.0)
        return declared - (end - first), declared

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        assert self.stream.time_base is not None, "FFmpeg gives every stream one"
        return self.stream.time_base

    @property
    def _declared_seconds(self) -> float | None:
        """Length of the video stream by the file's header, None where the format has no such field.

        Elsewhere FFmpeg estimates a duration from the bit rate, which proves nothing.
        """
        formats = self.container.format.name.split(",")
        if "mp4" in formats and self.stream.duration is not None:
            return float(self.stream.duration * self.time_base)
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self.stream.metadata.get("DURATION", ""))
        if "matroska" in formats and tag:
            hours, minutes, seconds = tag.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        return None


def upright(image: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Apply a display matrix (ISO 14496-12): mirror and turn by the nearest multiple of 90 degrees.

    Args:
        image: [H, W, ...].
        matrix: a, b, u, c, d, v, x, y, w; a pixel (p, q) = (column, row) is shown at (a p + c q + x, b p + d q + y).

    Returns:
        [H, W, ...] or [W, H, ...].
    """
    a, b, _, c, d, *_ = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, column_sign, row_sign = image.swapaxes(0, 1), c, b
    else:
        column_sign, row_sign = a, d
    return image[:: -1 if row_sign < 0 else 1, :: -1 if column_sign < 0 else 1]


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
