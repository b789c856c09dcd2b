"""A record's media as a clip, whatever its kind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from datamodules.records import RecordFile
from datamodules.types import VideoRecord
from datamodules.video.clip_cache import ClipCache
from datamodules.video.frame_sampling import FrameConfig
from datamodules.video.time_range import time_range
from datamodules.video.types import MediaConfig, ReaderName, VideoClip, VideoReadError, printable
from datamodules.video.video_reader import read_image, read_video
from rewards.errors import UserError

LOOKERS = 32
"""Threads that look for files: on a network file system each waits for an answer."""
LOOKS = 512
"""Files that a thread looks for before it reports."""


def find_missing(files: Iterable[RecordFile], *, progress: bool) -> tuple[list[str], int]:
    """Look for the media files of all records, each once.

    Args:
        files: just opened: their media have not been taken before.
        progress: show a progress bar in a terminal.

    Returns:
        `FILE:LINE: PATH` of the missing ones, by the first record that uses each; and how many were looked for.
    """
    from tqdm import tqdm

    missing, number = [], 0
    with ThreadPoolExecutor(LOOKERS) as pool:
        for file in files:
            media = list(file.take_media().items())
            number += len(media)
            parts = [media[start : start + LOOKS] for start in range(0, len(media), LOOKS)]
            title = f"looking for the media of {file.path.name}"
            with tqdm(total=len(media), desc=title, unit="file", disable=None if progress else True) as bar:
                for part, absent in zip(parts, pool.map(partial(_absent, file.data_root), parts), strict=True):
                    missing += [printable(f"{file.path}:{line}: {file.data_root / path}") for path, line in absent]
                    bar.update(len(part))
    return missing, number


def _absent(root: Path, media: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    # A Path would take longer to make than a local disk takes to answer.
    return [(path, line) for path, line in media if not os.path.isfile(f"{root}/{path}")]  # noqa: PTH113


def read_media(
    record: VideoRecord,
    data_root: str | Path,
    config: FrameConfig,
    *,
    reader: ReaderName = "pyav",
    media: MediaConfig = MediaConfig(),  # noqa: B008 - frozen
    cache: ClipCache | None = None,
) -> VideoClip | None:
    """Decode and resize the frames of a video or the image of a record; None for a text-only record.

    A video whose record carries `start` or `end` is read between these seconds alone. With a `cache`, it is read from
    there, or put there.

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
            return read_image(record.path, config, media=media, root=data_root, cache=cache)
        return read_video(record.path, config, reader, media=media, root=data_root, cache=cache, **times)
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
