"""Good, odd and bad media of many kinds, written by code, each with what must become of it.

Videos show their frames' numbers in a bar code, images are quadrants of plain colors: what is right is known without
any reader. `sound_images.py` and `bad_files.py` hold the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from datamodules.video.frame_sampling import FrameConfig
from tests.performance.video_cases import VideoCase, draw, write_case

FRAMES = FrameConfig(
    num_frames=4, min_pixels=28 * 28, max_pixels=64 * 96, image_min_pixels=28 * 28, image_max_pixels=56 * 56
)
COUNT = 30
"""Frames of a video."""
SAMPLED = (0, 10, 19, 29)
"""Four of them from first to last: 29 / 3 = 9.67 and 58 / 3 = 19.33, rounded."""


@dataclass(frozen=True, kw_only=True)
class MediaKind:
    """One file and what it must give: frame numbers, pixels or an error."""

    name: str
    data_type: str
    file: str
    write: Callable[[Path], object]
    """Writes the file to the given path."""
    numbers: tuple[int, ...] | None = None
    """Of the frames sampled from a good video."""
    pixels: np.ndarray | None = None
    """uint8 [H, W, 3] of a good image."""
    tolerance: int = 0
    """How far a pixel of a lossy format may be off."""
    error: str | None = None
    """Regular expression that the error about a bad file matches."""
    turned: int = 0
    """Quarter turns, counter-clockwise, from a video's stored frames to what is shown."""
    in_records: bool = True
    """Whether a data file can name it."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a numbered video is written; see `VideoCase` for H.264's own settings."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    count: int = COUNT
    size: tuple[int, int] = (96, 64)
    """Width, height."""
    start: int = 0
    """Seconds on the file's clock at which the first frame appears."""
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    sound: bool = False

    def __call__(self, path: Path) -> None:
        with av.open(str(path), "w", format=self.format, container_options=self.container) as output:
            stream = output.add_stream(self.codec, rate=30, options=self.options)
            width, height = self.size
            stream.width, stream.height, stream.pix_fmt = width, height, self.pixel_format
            sound = output.add_stream("aac", rate=48000, layout="mono") if self.sound else None
            even = (width + width % 2, height + height % 2)
            for number, picture in enumerate(draw(self.count, *even)):
                frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
                if self.pixel_format != "yuv420p" or even != self.size:
                    frame = frame.reformat(width, height, self.pixel_format)
                frame.pts, frame.time_base = number + 30 * self.start, Fraction(1, 30)
                frame.pict_type = 0
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
            if sound is not None:
                output.mux(sound.encode(silence(self.count * 1600)))
                output.mux(sound.encode(None))


def silence(samples: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 48000, 0
    return frame


def h264(**settings: object) -> Callable[[Path], None]:
    """A file of `VideoCase`, whatever its place."""

    def write(path: Path) -> None:
        case = VideoCase(name="case", width=96, height=64, suffix=path.suffix, **{"frames": COUNT, **settings})
        folder = path.parent / f"{path.name}.writing"
        folder.mkdir()
        write_case(case, folder).replace(path)
        folder.rmdir()

    return write


def video(name: str, suffix: str, write: Callable[[Path], object], **settings: object) -> MediaKind:
    file = settings.pop("file", f"{name.replace(' ', '_')}{suffix}")
    return MediaKind(
        **{"name": name, "data_type": "video", "file": file, "write": write, "numbers": SAMPLED, **settings}
    )


def sound_videos() -> list[MediaKind]:
    """Videos that give frames 0, 10, 19 and 29 (or what is said) exactly."""
    lossless = {"crf": "0"}
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    return [
        video("h264 mp4", ".mp4", h264()),
        video("h264 mov", ".mov", h264()),
        video("h264 mkv", ".mkv", h264()),
        video("h264 ts", ".ts", h264()),
        video("h264 flv", ".flv", h264()),
        video("h264 avi", ".avi", h264()),
        video("h264 fragments", ".mp4", Encoding(container=fragments)),
        video("h264 index first", ".mp4", h264(index_first=True)),
        video("h264 elementary stream", ".h264", Encoding(format="h264")),
        video("h264 lossless 444 odd size", ".mp4", Encoding(pixel_format="yuv444p", size=(95, 63), options=lossless)),
        video("h264 10 bit", ".mp4", Encoding(pixel_format="yuv420p10le")),
        video("h264 gray", ".mp4", Encoding(pixel_format="gray")),
        video("h264 with sound", ".mp4", Encoding(sound=True)),
        video("b pyramid", ".mp4", h264(b_frames=8, extra="b-pyramid=normal:ref=4")),
        video("no b frames", ".mp4", h264(b_frames=0)),
        video("open gop", ".mp4", h264(gop=6, open_gop=True)),
        video("open gop ts", ".ts", h264(gop=6, open_gop=True)),
        video("every frame a keyframe", ".mp4", h264(gop=1)),
        video("interlaced", ".mp4", h264(extra="tff=1")),
        video("intra refresh", ".mp4", h264(gop=20, b_frames=0, extra="intra-refresh=1")),
        video("variable rate", ".mp4", h264(variable_rate=True)),
        # 7 of 37 frames are hidden: those shown begin with number 7.
        video("edit list", ".mp4", h264(frames=37, trimmed=7), numbers=tuple(7 + number for number in SAMPLED)),
        video("one frame", ".mp4", h264(frames=1), numbers=(0, 0)),
        video("three frames", ".mp4", h264(frames=3), numbers=(0, 2)),
        video("rotated 90", ".mp4", h264(rotation=90), turned=1),
        video("rotated 180", ".mp4", h264(rotation=180), turned=2),
        video("rotated 270", ".mov", h264(rotation=270), turned=3),
        video("starts at 2 s", ".mp4", Encoding(start=2)),
        video("starts at 1000 s mp4", ".mp4", Encoding(start=1000)),
        video("starts at 1000 s mkv", ".mkv", Encoding(start=1000)),
        video("starts at 1000 s ts", ".ts", Encoding(start=1000)),
        video("starts at 1000 s flv", ".flv", Encoding(start=1000)),
        video("hevc", ".mp4", Encoding(codec="libx265", options={"x265-params": "log-level=none"})),
        video("vp8", ".webm", Encoding(codec="libvpx")),
        video("vp9", ".webm", Encoding(codec="libvpx-vp9")),
        video("vp9 with alpha", ".webm", Encoding(codec="libvpx-vp9", pixel_format="yuva420p")),
        video("av1", ".mkv", Encoding(codec="libsvtav1", options={"svtav1-params": "lp=1"})),
        video("mpeg4 avi", ".avi", Encoding(codec="mpeg4")),
        video("mpeg2 ts", ".ts", Encoding(codec="mpeg2video")),
        video("mpeg2 program stream", ".mpg", Encoding(codec="mpeg2video")),
        video("mpeg1", ".mpg", Encoding(codec="mpeg1video")),
        video("motion jpeg", ".avi", Encoding(codec="mjpeg", pixel_format="yuvj420p")),
        video("sorenson flv", ".flv", Encoding(codec="flv")),
        video("wmv", ".wmv", Encoding(codec="wmv2")),
        video("gif", ".gif", Encoding(codec="gif", pixel_format="rgb8")),
        video("ffv1", ".mkv", Encoding(codec="ffv1")),
        video("prores 10 bit 422", ".mov", Encoding(codec="prores_ks", pixel_format="yuv422p10le")),
        video("qtrle with alpha", ".mov", Encoding(codec="qtrle", pixel_format="argb")),
        video("wrong suffix", ".jpg", Encoding(format="mp4")),
        video("name with accents", ".mp4", h264(), file="été 視頻 😀.mp4"),
        video("name with colon and quotes", ".mp4", h264(), file="http:'a' \"b\" %d.mp4"),
        video("name with line break", ".mp4", h264(), file="a\nb.mp4"),
        video("name with control characters", ".mp4", h264(), file="a\x1b[31m\x07b.mp4"),
        video("name that is no UTF-8", ".mp4", h264(), file=os.fsdecode(b"caf\xe9.mp4"), in_records=False),
    ]
