"""A record's media as a clip, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from datamodules.frame_sampling import SamplingProfile
from datamodules.records import media_path
from datamodules.types import VideoClip, VideoRecord
from datamodules.video_reader import ReaderName, VideoReadError, read_image, read_video


def read_media(
    record: VideoRecord, data_root: str | Path, profile: SamplingProfile, *, reader: ReaderName = "pyav"
) -> VideoClip | None:
    """Decode and resize the frames of a video or the image of a record; None for a text-only record.

    Raises:
        VideoReadError: the file cannot be read; the message begins with the record's place.
        ValueError: the file is missing, or its path leaves the data root.
    """
    if record.data_type == "text":
        return None
    path = media_path(record, data_root)
    try:
        return read_image(path, profile) if record.data_type == "image" else read_video(path, profile, reader=reader)
    except VideoReadError as error:
        raise VideoReadError(f"{record.where}: {error}") from error
