"""Media files in, resized uint8 frames out: one function for videos, one for images, one for a video's numbers.

The default reader, PyAV, gives exactly the frames that a full sequential decode gives, on every file. decord and
torchcodec are optional; `tests/performance/video_reader.py` shows where they pick other frames.

Files are decoded in a reader process (`reader_process.py`), which is killed when a file takes too long; frames are
resized here, one after the other, while the next one is decoded there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from datamodules.video.clip_cache import ClipCache
from datamodules.video.decoding import READERS, Event, Picture, ReadRequest, Restart, Task, decode
from datamodules.video.frame_sampling import FrameConfig
from datamodules.video.reader_process import decode_elsewhere
from datamodules.video.time_range import time_range
from datamodules.video.types import FramePlan, MediaConfig, ReaderName, VideoClip, VideoMetadata, printable
from rewards.errors import check_choice

_log = logging.getLogger(__name__)


def read_video(
    path: str | Path,
    config: FrameConfig,
    reader: ReaderName = "pyav",
    *,
    start: float | None = None,
    end: float | None = None,
    media: MediaConfig = MediaConfig(),  # noqa: B008 - frozen
    root: str | Path | None = None,
    cache: ClipCache | None = None,
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
        media: time limit, strictness and bounds.
        root: folder that `path` is relative to and must not lead out of; None takes the path as it is.
        cache: where the clip may be already, and is put if not.

    Raises:
        VideoReadError: no such file, no video stream, no frames, cut off, damaged where it matters, too thin, too
            large, or not read within the time limit.
        TimeRangeError: `start` or `end` lies beyond the end of the video, or no frame appears between them.
        UserError: unknown reader; `start` and `end` are not 0 <= start < end.
        ImportError: the chosen reader, or the FFmpeg that torchcodec needs, is not installed.
    """
    check_choice("reader", reader, READERS)
    request = _request("video", path, root, config, media)
    return _cached(replace(request, times=time_range(start, end), reader=reader), cache)


def read_image(
    path: str | Path,
    config: FrameConfig,
    *,
    media: MediaConfig = MediaConfig(),  # noqa: B008 - frozen
    root: str | Path | None = None,
    cache: ClipCache | None = None,
) -> VideoClip:
    """Read and resize an image as a browser shows it on white: one frame, uint8 [1, 3, H, W], RGB.

    Arguments and errors are those of `read_video`.
    """
    return _cached(_request("image", path, root, config, media), cache)


def probe_video(
    path: str | Path,
    *,
    start: float | None = None,
    end: float | None = None,
    media: MediaConfig = MediaConfig(),  # noqa: B008 - frozen
    root: str | Path | None = None,
) -> VideoMetadata:
    """A video's numbers, or those of its stretch from `start` to `end`: demuxed once, decoded up to its first frame.

    Arguments and errors are those of `read_video`.
    """
    request = replace(_request("probe", path, root, FrameConfig(), media), times=time_range(start, end))
    (metadata,) = (event for event in _events(request) if isinstance(event, VideoMetadata))
    return metadata


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing on uint8 [3, H, W], the path of the Hugging Face processors; contiguous uint8."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize as resize_image

    resized = resize_image(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.contiguous()


def _request(
    task: Task, path: str | Path, root: str | Path | None, config: FrameConfig, media: MediaConfig
) -> ReadRequest:
    return ReadRequest(
        task=task,
        # The reader process may stand in another folder.
        path=str(path) if root is not None else str(Path(path).absolute()),
        root=None if root is None else str(Path(root).absolute()),
        config=config,
        media=media,
    )


def _cached(request: ReadRequest, cache: ClipCache | None) -> VideoClip:
    return _clip(request) if cache is None else cache.clip(request, _clip)


def _clip(request: ReadRequest) -> VideoClip:
    """Resize each picture as it comes and put them in the plan's order."""
    plan: FramePlan | None = None
    resized: dict[int, Tensor] = {}
    for event in _events(request):
        if isinstance(event, FramePlan):
            plan, resized = event, {}
        elif isinstance(event, Picture):
            assert plan is not None, "the plan comes first"
            image = torch.from_numpy(event.pixels).permute(2, 0, 1)  # [3, H, W]
            resized[event.number] = resize(image, plan.height, plan.width)
    assert plan is not None, "a file that is read without an error gives a plan"
    frames = torch.stack([resized[index] for index in plan.indices])
    return VideoClip(frames=frames, sample_fps=plan.sample_fps, is_video=request.task == "video")


def _events(request: ReadRequest) -> Iterator[Event]:
    for event in decode(request) if request.media.timeout is None else decode_elsewhere(request):
        if isinstance(event, Restart):
            _announce_full_decode(event.path, event.cause)
        yield event


@cache
def _announce_full_decode(path: str, cause: str) -> None:
    """Once per file and process, not once per epoch."""
    path = printable(path)
    _log.warning("%s: decoding the whole file to find its frames, because %s; re-encode it for speed.", path, cause)
