"""One media file as a stream of decoded pictures: the part of reading that may hang, crash or need much memory.

It runs in a reader process (`reader_process.py`), and in the loader's own where no time limit is set. Imports no torch:
the process starts in half a second with 45 MB, instead of 5 seconds and 680 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.video.frame_sampling import FrameConfig, frame_indices, plan_frames, plan_image_size
from datamodules.video.image_file import decode_image
from datamodules.video.media_place import media_place
from datamodules.video.pyav_reader import CountedVideo, IndexedVideo, IndexMismatch
from datamodules.video.time_range import TimeRange
from datamodules.video.types import (
    FileIdentity,
    FramePlan,
    MediaConfig,
    ReaderName,
    VideoMetadata,
    VideoReadError,
    printable,
    unreadable,
)
from datamodules.video.video_file import DECODER_THREADS, VideoFile

OTHER_READER = "Use `reader: pyav`, or fetch the file again or re-encode it."


Task = Literal["video", "image", "probe", "identity"]


@dataclass(frozen=True, kw_only=True)
class ReadRequest:
    """One file to read."""

    task: Task
    """Frames of a video, an image, a video's numbers alone, or what the disk knows of the file without opening it."""
    path: str
    root: str | None = None
    """Folder that `path` is below, and must not lead out of; None takes the path as it is."""
    config: FrameConfig
    times: TimeRange | None = None
    """The stretch of a video; None for all of it."""
    reader: ReaderName = "pyav"
    media: MediaConfig


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded frame or image."""

    number: int
    """Frame number, as in `FramePlan.indices`."""
    pixels: np.ndarray
    """uint8 [H, W, 3], RGB, upright."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """What came so far does not count: the whole file is decoded, and all of it comes again."""

    path: str
    cause: str


Event = FramePlan | Picture | VideoMetadata | FileIdentity | Restart
Numbered = Iterator[tuple[int, np.ndarray]]


def decode(request: ReadRequest) -> Iterator[Event]:
    """Read a file: the plan, then each picture of it once; or a video's numbers, or the file's identity.

    Raises:
        VideoReadError: the file cannot be read, whatever went wrong in the libraries that read it.
        ImportError: the chosen reader is not installed.
    """
    path = Path(request.path)
    try:
        if request.root is not None:
            path = media_place(request.path, request.root)
        yield from _TASKS[request.task](path, request)
    except ImportError:
        raise
    except VideoReadError as error:
        raise type(error)(printable(str(error))) from error
    except Exception as error:
        unknown = unreadable(path, f"it cannot be read ({type(error).__name__}: {error})")
        raise VideoReadError(printable(str(unknown))) from error


def _image(path: Path, request: ReadRequest) -> Iterator[Event]:
    pixels = decode_image(path, request.media)
    height, width = _named(path, lambda: plan_image_size(pixels.shape[0], pixels.shape[1], request.config))
    yield FramePlan(indices=(0,), height=height, width=width, sample_fps=0.0)
    yield Picture(number=0, pixels=pixels)


def _video(path: Path, request: ReadRequest) -> Iterator[Event]:
    return READERS[request.reader](path, request)


def _probe(path: Path, request: ReadRequest) -> Iterator[Event]:
    return _with_video(path, request, lambda video: iter([_metadata(video, request.times)]))


def _identity(path: Path, request: ReadRequest) -> Iterator[Event]:
    path = path.resolve()
    status = path.stat()
    yield FileIdentity(path=str(path), size=status.st_size, modified=status.st_mtime_ns, changed=status.st_ctime_ns)


def _pyav(path: Path, request: ReadRequest) -> Iterator[Event]:
    def sample(video: IndexedVideo | CountedVideo) -> Iterator[Event]:
        shown, seconds = _stretch(video, request.times)
        pictures = ((ordinal, video.rgb(frame)) for ordinal, frame in video.frames(_chosen(shown, request.config)))
        return _planned(path, pictures, shown, float(len(shown) / seconds), request.config)

    return _with_video(path, request, sample)


def _with_video(
    path: Path, request: ReadRequest, use: Callable[[IndexedVideo | CountedVideo], Iterator[Event]]
) -> Iterator[Event]:
    """Read from a video by its packet index or, where the decoder contradicts the index, by decoding all of it."""
    try:
        with IndexedVideo(path, request.media) as video:
            yield from use(video)
    except IndexMismatch as mismatch:
        yield Restart(path=str(path), cause=str(mismatch))
        with CountedVideo(path, request.media) as video:
            yield from use(video)


def _stretch(video: IndexedVideo | CountedVideo, times: TimeRange | None) -> tuple[range, Fraction]:
    return (range(video.total_frames), video.duration) if times is None else video.within(times)


def _chosen(shown: range, config: FrameConfig) -> list[int]:
    """The frames that are sampled from the frames `shown`: numbers within the file, ascending, each once."""
    return sorted({shown[index] for index in frame_indices(len(shown), config)})


def _decord(path: Path, request: ReadRequest) -> Iterator[Event]:
    """decord, opened anew for each file: a reader opened before a fork hangs the worker."""
    import decord

    VideoFile(path, request.media).close()  # decord opens any format; this refuses what is not allowed
    try:
        video = decord.VideoReader(str(path), num_threads=DECODER_THREADS)
        shown, fps = _stretch_at_rate(path, len(video), float(video.get_avg_fps()), request.times)
        wanted = _chosen(shown, request.config)
        pictures = video.get_batch(wanted).asnumpy()  # [f, H, W, 3]
    except (decord.DECORDError, RuntimeError) as error:
        raise unreadable(path, f"decord cannot read it ({str(error).strip()})", OTHER_READER) from error
    yield from _planned(path, zip(wanted, pictures, strict=True), shown, fps, request.config)


def _torchcodec(path: Path, request: ReadRequest) -> Iterator[Event]:
    """torchcodec in its exact seek mode; it needs FFmpeg's shared libraries on the machine."""
    VideoFile(path, request.media).close()  # as for decord
    try:
        from torchcodec.decoders import VideoDecoder  # older versions look for FFmpeg here, newer ones on use

        video = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=DECODER_THREADS, seek_mode="exact")
        if video.metadata.average_fps is None:
            raise unreadable(path, "torchcodec finds no frame rate", OTHER_READER)
        shown, fps = _stretch_at_rate(path, len(video), video.metadata.average_fps, request.times)
        wanted = _chosen(shown, request.config)
        pictures = video.get_frames_at(wanted).data.numpy()  # [f, H, W, 3]
    except VideoReadError:
        raise  # a ValueError that is ours
    except (RuntimeError, ValueError, IndexError) as error:
        if "Could not load libtorchcodec" in str(error):
            raise ImportError(
                "torchcodec finds no FFmpeg of a version that it knows. Install FFmpeg's shared libraries (on Debian: "
                "`apt-get install ffmpeg`), or use `reader: pyav`, which brings its own."
            ) from error
        raise unreadable(path, f"torchcodec cannot read it ({str(error).strip()})", OTHER_READER) from error
    yield from _planned(path, zip(wanted, pictures, strict=True), shown, fps, request.config)


def _stretch_at_rate(path: Path, total_frames: int, fps: float, times: TimeRange | None) -> tuple[range, float]:
    """The frames of the stretch, and how many of them there are in a second."""
    if times is None:
        return range(total_frames), fps
    shown, seconds = times.frames_at_rate(path, total_frames, fps)
    return shown, float(len(shown) / seconds)


def _planned(path: Path, pictures: Numbered, shown: range, fps: float, config: FrameConfig) -> Iterator[Event]:
    """The plan, which needs the size of the first picture, then the pictures.

    Args:
        path: named in errors.
        pictures: (number within the file, pixels) of every frame of the plan, once.
        shown: numbers of the frames that the plan chooses from: all of the video, or a stretch of it.
        fps: how many of them there are in a second.
        config: frame count and pixel budget.
    """
    for place, (number, pixels) in enumerate(pictures):
        if place == 0:
            yield _named(path, lambda size=pixels.shape: plan_frames(len(shown), fps, size[0], size[1], config))
        yield Picture(number=number - shown.start, pixels=pixels)


def _named(path: Path, plan: Callable[[], Any]) -> Any:
    try:
        return plan()
    except ValueError as error:
        raise VideoReadError(f"{path}: {error}") from error


def _metadata(video: IndexedVideo | CountedVideo, times: TimeRange | None) -> VideoMetadata:
    shown, seconds = _stretch(video, times)
    height, width = next(video.rgb(frame).shape[:2] for _, frame in video.frames([0]))
    return VideoMetadata(
        total_frames=len(shown),
        fps=float(len(shown) / seconds),
        height=height,
        width=width,
        duration=float(seconds),
    )


_TASKS: dict[Task, Callable[[Path, ReadRequest], Iterator[Event]]] = {
    "video": _video,
    "image": _image,
    "probe": _probe,
    "identity": _identity,
}
READERS: dict[ReaderName, Callable[[Path, ReadRequest], Iterator[Event]]] = {
    "pyav": _pyav,
    "decord": _decord,
    "torchcodec": _torchcodec,
}
