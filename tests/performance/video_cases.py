"""Video files that readers find easy and hard, each frame marked with its number.

The number is a bar code along the bottom edge, so a frame can be recognized after any decoder, color conversion and
resize. Content is a moving texture: every frame differs from its neighbors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

NUMBER_BITS = 16
UNEVEN_GAPS = (4, 1, 9, 2, 4)
"""Ticks from one frame to the next in a clip of variable rate; its average frame lasts 20 / 5 = 4 ticks."""


@dataclass(frozen=True, kw_only=True)
class VideoCase:
    """One generated file."""

    name: str
    width: int
    height: int
    frames: int
    """Frames encoded."""
    fps: int = 30
    gop: int = 60
    """Frames from one keyframe to the next."""
    open_gop: bool = False
    """Frames before a keyframe refer to it and to the group before."""
    trimmed: int = 0
    """Frames at the start that the edit list hides."""
    variable_rate: bool = False
    rotation: int = 0
    """Degrees, counter-clockwise, in the display matrix."""
    codec: str = "libx264"
    suffix: str = ".mp4"
    b_frames: int = 2
    index_first: bool = False
    """MP4: the index stands before the frames, so a cut-off file still opens."""
    extra: str = ""
    """More x264 parameters, joined by colons."""

    def path(self, folder: Path) -> Path:
        """Where the file stands in `folder`."""
        return folder / f"{'_'.join(self.name.replace(',', '').split())}{self.suffix}"

    @property
    def ticks_per_frame(self) -> int:
        """Ticks that a frame lasts on average; a tick is 1 / (fps * ticks_per_frame) seconds."""
        return sum(UNEVEN_GAPS) // len(UNEVEN_GAPS) if self.variable_rate else 1

    def ticks(self) -> list[int]:
        """Presentation time of each encoded frame; negative for those that the edit list hides."""
        gaps = UNEVEN_GAPS if self.variable_rate else (1,)
        times = accumulate(islice(cycle(gaps), self.frames - 1), initial=0)
        return [time - self.trimmed * self.ticks_per_frame for time in times]


def write_case(case: VideoCase, folder: Path) -> Path:
    """Encode `case` into `folder` and return its path."""
    import av

    path = case.path(folder)
    time_base = Fraction(1, case.fps * case.ticks_per_frame)
    options = {"movflags": "faststart"} if case.index_first else {}
    with av.open(str(path), "w", container_options=options) as container:
        stream = container.add_stream(case.codec, rate=case.fps, options=_encoder_options(case))
        stream.width, stream.height, stream.pix_fmt = case.width, case.height, "yuv420p"
        stream.codec_context.time_base = time_base
        if case.rotation:
            stream.set_display_rotation(case.rotation)
        for time, picture in zip(case.ticks(), draw(case.frames, case.width, case.height), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def draw(frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Numbered pictures as yuv420p planes, uint8 [height * 3 / 2, width]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 216, ((height + 512) // 16 + 2, (width + 512) // 16 + 2)).astype(np.uint8)
    texture = coarse.repeat(16, 0).repeat(16, 1) + rng.integers(-8, 8, (1, (coarse.shape[1]) * 16)).astype(np.uint8)
    for number in range(frames):
        picture = np.empty((height * 3 // 2, width), np.uint8)
        down, right = (number * 3) % 256, (number * 5) % 512
        picture[:height] = texture[down : down + height, right : right + width]
        picture[height - height // 8 : height] = np.repeat(_bars(number), -(-width // NUMBER_BITS))[:width]
        picture[height:] = 96 + number % 64
        yield picture


def frame_number(frame: Tensor) -> int:
    """The number in the bar code of an RGB frame, uint8 [3, H, W]; unchanged by resizing."""
    _, height, width = frame.shape
    row = frame[1, height - max(height // 16, 1)].float()
    centres = ((torch.arange(NUMBER_BITS) + 0.5) * width / NUMBER_BITS).long()
    return sum(1 << bit for bit, bright in enumerate((row[centres] > 128).tolist()) if bright)


def count_frames(path: Path) -> int:
    """Frames that a full sequential decode gives."""
    return sum(1 for _ in _decoded(path))


def full_decode(path: Path, ordinals: Collection[int] | None = None) -> Iterator[Tensor]:
    """Frames of a full sequential decode in order, uint8 [3, H, W]: the truth that readers are measured against.

    Plain PyAV: no seeking, no index, no rotation.

    Args:
        path: the video file.
        ordinals: the frames to give; None for all.
    """
    for ordinal, frame in enumerate(_decoded(path)):
        if ordinals is None or ordinal in ordinals:
            yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def _decoded(path: Path) -> Iterator[VideoFrame]:
    import av

    with av.open(str(path)) as container:
        yield from container.decode(video=0)


def _bars(number: int) -> np.ndarray:
    """Luma of the bar code's cells, least significant bit first: white for 1, black for 0."""
    return np.array([235 if number >> bit & 1 else 16 for bit in range(NUMBER_BITS)], np.uint8)


def _encoder_options(case: VideoCase) -> dict[str, str]:
    """Fast to encode, and still what real files hold: CABAC and B-frames."""
    if case.codec != "libx264":
        return {}
    settings = [
        f"keyint={case.gop}:min-keyint={case.gop}:scenecut=0:bframes={case.b_frames}:b-adapt=0:cabac=1:threads=1",
        f"open-gop={int(case.open_gop)}",
        case.extra,
    ]
    return {"preset": "ultrafast", "crf": "23", "x264-params": ":".join(part for part in settings if part)}
