"""Media files in, resized uint8 frames out: one function for videos, one for images, one for a video's numbers.

The default reader, PyAV, gives exactly the frames that a full sequential decode gives, on every file. decord and
torchcodec are optional; `benchmarks/video_reader.py` shows where they pick other frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from datamodules.frame_sampling import SamplingProfile, frame_indices, plan_frames, plan_image_size
from datamodules.pyav_reader import CountedVideo, IndexedVideo, IndexMismatch
from datamodules.types import FramePlan, VideoClip
from datamodules.video_file import DECODER_THREADS
from datamodules.video_metadata import VideoMetadata, VideoReadError, unreadable

__all__ = ["READERS", "ReaderName", "VideoMetadata", "VideoReadError", "probe_video", "read_image", "read_video"]

ReaderName = Literal["pyav", "decord", "torchcodec"]

OTHER_READER = "Use `reader: pyav`, or fetch the file again or re-encode it."

_log = logging.getLogger(__name__)


def read_video(path: str | Path, profile: SamplingProfile, reader: ReaderName = "pyav") -> VideoClip:
    """Sample, decode and resize a video: uint8 [F, 3, H, W], RGB, upright, non-square pixels taken as square.

    Args:
        path: the video file.
        profile: how many frames, and how large.
        reader: "pyav" (exact), "decord" or "torchcodec".

    Raises:
        VideoReadError: no such file, no video stream, no frames, cut off, damaged where it matters, or too thin.
        ValueError: unknown reader.
        ImportError: the chosen reader is not installed.
    """
    if reader not in READERS:
        raise ValueError(f"Unknown video reader {reader!r}; choose one of {', '.join(READERS)}.")
    return READERS[reader](Path(path), profile)


def read_image(path: str | Path, profile: SamplingProfile) -> VideoClip:
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
        raise unreadable(path, "the file does not exist", "Check the path and the data root.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        mend = "Fetch the file again or save it anew as PNG or JPEG."
        raise unreadable(path, f"it cannot be read as an image ({error})", mend) from error
    image = torch.from_numpy(pixels).permute(2, 0, 1)  # [3, H, W]
    try:
        height, width = plan_image_size(*image.shape[-2:], profile)
    except ValueError as error:
        raise VideoReadError(f"{path}: {error}") from error
    return VideoClip(frames=resize(image, height, width)[None], sample_fps=0.0, is_video=False)


def probe_video(path: str | Path) -> VideoMetadata:
    """A video's numbers: demuxed once, decoded up to its first frame.

    Raises:
        VideoReadError: as `read_video`.
    """
    try:
        with IndexedVideo(path) as video:
            return _metadata(video)
    except IndexMismatch as mismatch:
        _announce_full_decode(Path(path), str(mismatch))
        with CountedVideo(path) as video:
            return _metadata(video)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing on uint8 [3, H, W], the path of the Hugging Face processors; contiguous uint8."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize as resize_image

    resized = resize_image(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.contiguous()


def _read_pyav(path: Path, profile: SamplingProfile) -> VideoClip:
    try:
        with IndexedVideo(path) as video:
            return _sample(video, profile)
    except IndexMismatch as mismatch:
        _announce_full_decode(Path(path), str(mismatch))
        with CountedVideo(path) as video:
            return _sample(video, profile)


def _sample(video: IndexedVideo | CountedVideo, profile: SamplingProfile) -> VideoClip:
    ordinals = frame_indices(video.total_frames, profile)
    images = ((ordinal, video.rgb(frame)) for ordinal, frame in video.frames(ordinals))
    return _clip(video.path, images, video.total_frames, float(video.total_frames / video.duration), profile)


def _read_decord(path: Path, profile: SamplingProfile) -> VideoClip:
    """decord, opened anew for each file: a reader opened before a fork hangs the worker."""
    import decord

    try:
        video = decord.VideoReader(str(path), num_threads=DECODER_THREADS)
        wanted = sorted(set(frame_indices(len(video), profile)))
        images = torch.from_numpy(video.get_batch(wanted).asnumpy()).permute(0, 3, 1, 2)  # [f, 3, H, W]
        fps = float(video.get_avg_fps())
    except (decord.DECORDError, RuntimeError) as error:
        raise unreadable(path, f"decord cannot read it ({str(error).strip()})", OTHER_READER) from error
    return _clip(path, zip(wanted, images, strict=True), len(video), fps, profile)


def _read_torchcodec(path: Path, profile: SamplingProfile) -> VideoClip:
    """torchcodec in its exact seek mode; it needs FFmpeg's shared libraries on the machine."""
    from torchcodec.decoders import VideoDecoder

    if not path.exists():
        raise unreadable(path, "the file does not exist", "Check the path and the data root.")
    try:
        video = VideoDecoder(str(path), dimension_order="NCHW", num_ffmpeg_threads=DECODER_THREADS, seek_mode="exact")
        wanted = sorted(set(frame_indices(len(video), profile)))
        images = video.get_frames_at(wanted).data  # [f, 3, H, W]
    except (RuntimeError, ValueError, IndexError) as error:
        raise unreadable(path, f"torchcodec cannot read it ({str(error).strip()})", OTHER_READER) from error
    return _clip(path, zip(wanted, images, strict=True), len(video), float(video.metadata.average_fps), profile)


def _clip(
    path: Path, images: Iterable[tuple[int, Tensor]], total_frames: int, fps: float, profile: SamplingProfile
) -> VideoClip:
    """Resize each image as it comes and put them in the plan's order.

    Args:
        path: named in errors.
        images: (frame number, uint8 [3, H, W]) of every frame of the plan, once.
        total_frames: frames of the video.
        fps: frames per second of the video.
        profile: frame count and pixel budget.
    """
    plan: FramePlan | None = None
    resized: dict[int, Tensor] = {}
    for number, image in images:
        if plan is None:
            plan = _plan(path, total_frames, fps, *image.shape[-2:], profile)
        resized[number] = resize(image, plan.height, plan.width)
    assert plan is not None, "a video of at least one frame gives at least one image"
    frames = torch.stack([resized[number] for number in plan.indices])
    return VideoClip(frames=frames, sample_fps=plan.sample_fps, is_video=True)


def _plan(path: Path, total_frames: int, fps: float, height: int, width: int, profile: SamplingProfile) -> FramePlan:
    try:
        return plan_frames(total_frames, fps, height, width, profile)
    except ValueError as error:
        raise VideoReadError(f"{path}: {error}") from error


def _metadata(video: IndexedVideo | CountedVideo) -> VideoMetadata:
    height, width = next(video.rgb(frame).shape[-2:] for _, frame in video.frames([0]))
    return VideoMetadata(
        total_frames=video.total_frames,
        fps=float(video.total_frames / video.duration),
        height=height,
        width=width,
        duration=float(video.duration),
    )


@cache
def _announce_full_decode(path: Path, cause: str) -> None:
    """Once per file and process, not once per epoch."""
    _log.warning("%s: decoding the whole file to find its frames, because %s; re-encode it for speed.", path, cause)


READERS: dict[str, Callable[[Path, SamplingProfile], VideoClip]] = {
    "pyav": _read_pyav,
    "decord": _read_decord,
    "torchcodec": _read_torchcodec,
}
