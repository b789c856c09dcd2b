"""A record's media as a clip, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from datamodules.records import media_path
from datamodules.types import VideoRecord
from datamodules.video.frame_sampling import FrameConfig
from datamodules.video.time_range import time_range
from datamodules.video.types import VideoClip, VideoReadError
from datamodules.video.video_reader import ReaderName, read_image, read_video
from rewards.errors import UserError


def read_media(
    record: VideoRecord, data_root: str | Path, config: FrameConfig, *, reader: ReaderName = "pyav"
) -> VideoClip | None:
    """Decode and resize the frames of a video or the image of a record; None for a text-only record.

    A video whose record carries `start` or `end` is read between these seconds alone.

    Raises:
        VideoReadError: the file cannot be read; the message begins with the record's place.
        TimeRangeError: the record's `start` or `end` lies beyond the end of the video; the message as above.
        UserError: the file is missing, its path leaves the data root, or `start` and `end` are no range of seconds.
    """
    if record.data_type == "text":
        return None
    path = media_path(record, data_root)
    times = record_times(record)
    try:
        if record.data_type == "image":
            return read_image(path, config)
        return read_video(path, config, reader=reader, **times)
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
