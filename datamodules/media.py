"""A record's media as a clip, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from datamodules.types import VideoRecord
from datamodules.video.frame_sampling import FrameConfig
from datamodules.video.time_range import time_range
from datamodules.video.types import MediaConfig, ReaderName, VideoClip, VideoReadError
from datamodules.video.video_reader import read_image, read_video
from rewards.errors import UserError


def read_media(
    record: VideoRecord,
    data_root: str | Path,
    config: FrameConfig,
    *,
    reader: ReaderName = "pyav",
    media: MediaConfig = MediaConfig(),  # noqa: B008 - frozen
) -> VideoClip | None:
    """Decode and resize the frames of a video or the image of a record; None for a text-only record.

    A video whose record carries `start` or `end` is read between these seconds alone.

    Raises:
        VideoReadError: the file cannot be read; the message begins with the record's place.
        MediaPathError: the file is missing, is no regular file, or its path leaves the data root; likewise.
        TimeRangeError: the record's `start` or `end` lies beyond the end of the video; likewise.
        UserError: `start` and `end` are no range of seconds.
    """
    if record.path is None:
        return None
    times = record_times(record)
    try:
        if record.data_type == "image":
            return read_image(record.path, config, media=media, root=data_root)
        return read_video(record.path, config, reader, media=media, root=data_root, **times)
    except VideoReadError as error:
        raise type(error)(f"{record.where}: {error}") from error


def record_times(record: VideoRecord) -> dict[str, float | None]:
    """The record's `start` and `end` in seconds as keyword arguments of `read_video`; None where it has none.

    Raises:
        UserError: they are not numbers with 0 <= start < end.
    """
    times = {name: record.extra.get(name) for name in ("start", "end")} if record.data_type == "video" else {}
    try:
        time_range(times.get("start"), times.get("end"))
    except ValueError as error:
        raise UserError(f"{record.where}: {error} Correct the record.") from error
    return times
