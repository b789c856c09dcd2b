"""Media files in, resized uint8 frames out: one function for videos, one for images, one for a video's numbers.

The default reader, PyAV, gives exactly the frames that a full sequential decode gives, on every file. decord and
torchcodec are optional; `tests/performance/video_reader.py` shows where they pick other frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from datamodules.video.frame_sampling import FrameConfig, frame_indices, plan_frames, plan_image_size
from datamodules.video.pyav_reader import CountedVideo, IndexedVideo, IndexMismatch
from datamodules.video.time_range import TimeRange, time_range
from datamodules.video.types import (
    FramePlan,
    VideoClip,
    VideoMetadata,
    VideoReadError,
    missing_file,
    unreadable,
)
from datamodules.video.video_file import DECODER_THREADS
from rewards.errors import UserError

ReaderName = str
"""A key of `READERS`."""
Result = TypeVar("Result")

OTHER_READER = "Use `reader: pyav`, or fetch the file again or re-encode it."

_log = logging.getLogger(__name__)


def read_video(
    path: str | Path,
    config: FrameConfig,
    reader: ReaderName = "pyav",
    *,
    start: float | None = None,
    end: float | None = None,
) -> VideoClip:
    """Sample, decode and resize a video: uint8 [F, 3, H, W], RGB, upright, non-square pixels taken as square.

    With `start` or `end`, the frames are spread over that stretch alone: over the frames that appear at a time t with
    start <= t < end, counted from the first frame. PyAV goes by the frames' own times; decord and torchcodec by their
    average rate, which is exact at a constant rate only.

    Args:
        path: the video file.
        config: how many frames, and how large.
        reader: "pyav" (exact), "decord" or "torchcodec".
        start: seconds; None for the beginning.
        end: seconds, at most a second beyond the end of the video; None for the end.

    Raises:
        VideoReadError: no such file, no video stream, no frames, cut off, damaged where it matters, or too thin.
        TimeRangeError: `start` or `end` lies beyond the end of the video, or no frame appears between them.
        UserError: unknown reader; `start` and `end` are not 0 <= start < end.
        ImportError: the chosen reader, or the FFmpeg that torchcodec needs, is not installed.
    """
    if reader not in READERS:
        raise UserError(f"Unknown video reader {reader!r}; choose one of {', '.join(READERS)}.")
    return READERS[reader](Path(path), config, time_range(start, end))


def read_image(path: str | Path, config: FrameConfig) -> VideoClip:
    """Read and resize an image: one frame, uint8 [1, 3, H, W], RGB, turned as its EXIF tag says.

    Raises:
        VideoReadError: no such file, no image, damaged, or too thin.
    """
    import numpy as np
    from PIL import Image, ImageOps

    path = Path(path)
    try:
        with Image.open(path) as file:
            pixels = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        remedy = "Fetch the file again or save it anew as PNG or JPEG."
        raise unreadable(path, f"it cannot be read as an image ({error})", remedy) from error
    image = torch.from_numpy(pixels).permute(2, 0, 1)  # [3, H, W]
    try:
        height, width = plan_image_size(*image.shape[-2:], config)
    except ValueError as error:
        raise VideoReadError(f"{path}: {error}") from error
    return VideoClip(frames=resize(image, height, width)[None], sample_fps=0.0, is_video=False)


def probe_video(path: str | Path, *, start: float | None = None, end: float | None = None) -> VideoMetadata:
    """A video's numbers, or those of its stretch from `start` to `end`: demuxed once, decoded up to its first frame.

    Raises:
        VideoReadError, TimeRangeError, UserError: as `read_video`.
    """
    times = time_range(start, end)
    return _with_video(Path(path), lambda video: _metadata(video, times))


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing on uint8 [3, H, W], the path of the Hugging Face processors; contiguous uint8."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize as resize_image

    resized = resize_image(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.contiguous()


def _read_pyav(path: Path, config: FrameConfig, times: TimeRange | None) -> VideoClip:
    def sample(video: IndexedVideo | CountedVideo) -> VideoClip:
        shown, seconds = _stretch(video, times)
        images = ((ordinal, video.rgb(frame)) for ordinal, frame in video.frames(_chosen(shown, config)))
        return _clip(path, images, shown, float(len(shown) / seconds), config)

    return _with_video(path, sample)


def _with_video(path: Path, use: Callable[[IndexedVideo | CountedVideo], Result]) -> Result:
    """Read from a video by its packet index or, where the decoder contradicts the index, by decoding all of it."""
    try:
        with IndexedVideo(path) as video:
            return use(video)
    except IndexMismatch as mismatch:
        _announce_full_decode(path, str(mismatch))
        with CountedVideo(path) as video:
            return use(video)


def _stretch(video: IndexedVideo | CountedVideo, times: TimeRange | None) -> tuple[range, Fraction]:
    return (range(video.total_frames), video.duration) if times is None else video.within(times)


def _chosen(shown: range, config: FrameConfig) -> list[int]:
    """The frames that are sampled from the frames `shown`: numbers within the file, ascending, each once."""
    return sorted({shown[index] for index in frame_indices(len(shown), config)})


def _read_decord(path: Path, config: FrameConfig, times: TimeRange | None) -> VideoClip:
    """decord, opened anew for each file: a reader opened before a fork hangs the worker."""
    import decord

    try:
        video = decord.VideoReader(str(path), num_threads=DECODER_THREADS)
        shown, fps = _stretch_at_rate(path, len(video), float(video.get_avg_fps()), times)
        wanted = _chosen(shown, config)
        images = torch.from_numpy(video.get_batch(wanted).asnumpy()).permute(0, 3, 1, 2)  # [f, 3, H, W]
    except (decord.DECORDError, RuntimeError) as error:
        raise unreadable(path, f"decord cannot read it ({str(error).strip()})", OTHER_READER) from error
    return _clip(path, zip(wanted, images, strict=True), shown, fps, config)


def _read_torchcodec(path: Path, config: FrameConfig, times: TimeRange | None) -> VideoClip:
    """torchcodec in its exact seek mode; it needs FFmpeg's shared libraries on the machine."""
    if not path.exists():
        raise missing_file(path)
    try:
        from torchcodec.decoders import VideoDecoder  # older versions look for FFmpeg here, newer ones on use

        video = VideoDecoder(str(path), dimension_order="NCHW", num_ffmpeg_threads=DECODER_THREADS, seek_mode="exact")
        shown, fps = _stretch_at_rate(path, len(video), float(video.metadata.average_fps), times)
        wanted = _chosen(shown, config)
        images = video.get_frames_at(wanted).data  # [f, 3, H, W]
    except VideoReadError:
        raise  # a UserError that is ours
    except (RuntimeError, ValueError, IndexError) as error:
        if "Could not load libtorchcodec" in str(error):
            raise ImportError(
                "torchcodec finds no FFmpeg of a version that it knows. Install FFmpeg's shared libraries (on Debian: "
                "`apt-get install ffmpeg`), or use `reader: pyav`, which brings its own."
            ) from error
        raise unreadable(path, f"torchcodec cannot read it ({str(error).strip()})", OTHER_READER) from error
    return _clip(path, zip(wanted, images, strict=True), shown, fps, config)


def _stretch_at_rate(path: Path, total_frames: int, fps: float, times: TimeRange | None) -> tuple[range, float]:
    """The frames of the stretch, and how many of them there are in a second."""
    if times is None:
        return range(total_frames), fps
    shown, seconds = times.frames_at_rate(path, total_frames, fps)
    return shown, float(len(shown) / seconds)


def _clip(path: Path, images: Iterable[tuple[int, Tensor]], shown: range, fps: float, config: FrameConfig) -> VideoClip:
    """Resize each image as it comes and put them in the plan's order.

    Args:
        path: named in errors.
        images: (frame number, uint8 [3, H, W]) of every frame of the plan, once.
        shown: numbers of the frames that the plan chooses from: all of the video, or a stretch of it.
        fps: how many of them there are in a second.
        config: frame count and pixel budget.
    """
    plan: FramePlan | None = None
    resized: dict[int, Tensor] = {}
    for number, image in images:
        if plan is None:
            plan = _plan(path, len(shown), fps, *image.shape[-2:], config)
        resized[number] = resize(image, plan.height, plan.width)
    assert plan is not None, "a video of at least one frame gives at least one image"
    frames = torch.stack([resized[shown[index]] for index in plan.indices])
    return VideoClip(frames=frames, sample_fps=plan.sample_fps, is_video=True)


def _plan(path: Path, total_frames: int, fps: float, height: int, width: int, config: FrameConfig) -> FramePlan:
    try:
        return plan_frames(total_frames, fps, height, width, config)
    except ValueError as error:
        raise VideoReadError(f"{path}: {error}") from error


def _metadata(video: IndexedVideo | CountedVideo, times: TimeRange | None) -> VideoMetadata:
    shown, seconds = _stretch(video, times)
    height, width = next(video.rgb(frame).shape[-2:] for _, frame in video.frames([0]))
    return VideoMetadata(
        total_frames=len(shown),
        fps=float(len(shown) / seconds),
        height=height,
        width=width,
        duration=float(seconds),
    )


@cache
def _announce_full_decode(path: Path, cause: str) -> None:
    """Once per file and process, not once per epoch."""
    _log.warning("%s: decoding the whole file to find its frames, because %s; re-encode it for speed.", path, cause)


READERS: dict[str, Callable[[Path, FrameConfig, TimeRange | None], VideoClip]] = {
    "pyav": _read_pyav,
    "decord": _read_decord,
    "torchcodec": _read_torchcodec,
}
