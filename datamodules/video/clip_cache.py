"""Decoded clips on disk, so that later epochs, runs and evaluations neither open nor decode the media again.

One file per clip: a line of JSON, a checksum, then the frames as uint8. Its name is a digest of all that the frames
follow from: the media file (path, size, times of its last change), the stretch, the frames and pixels asked for, and
what reads and resizes them. A media file that changes thus gets another entry, and no entry goes out of date.

Any number of workers, runs and nodes may share a folder, and anything in it may be deleted at any time. When the limit
is reached, no more is added: training visits all clips in turn, so that evicting the oldest would evict each clip just
before it is needed.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from datamodules.video.decoding import ReadRequest, decode
from datamodules.video.reader_process import decode_elsewhere
from datamodules.video.types import FileIdentity, ReaderName, VideoClip
from rewards.errors import UserError

FORMAT = 1
"""Of the entries; part of their names."""
CHECKSUM_SIZE = 4
PARTIAL = ".partial"
STALE_SECONDS = 3600
"""After which an entry that is still being written belongs to a program that was killed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipCacheConfig:
    """Where decoded clips are kept, and how many."""

    folder: str
    """Made where it is missing. A disk of the machine, or a shared one that is faster than decoding."""
    max_gigabytes: float = 100.0
    """Size of the folder (10**9 bytes). Each process that fills it may add 1 % before it sees what others added."""

    def __post_init__(self) -> None:
        if not self.max_gigabytes > 0:
            raise UserError(f"clip_cache.max_gigabytes is {self.max_gigabytes}; it must be above 0.")


class ClipCache:
    """A folder of decoded clips."""

    def __init__(self, config: ClipCacheConfig) -> None:
        self.folder = Path(config.folder)
        self.limit = int(config.max_gigabytes * 1e9)
        self._size: int | None = None
        """Bytes in the folder when this process last counted them."""
        self._added = 0
        """Bytes that this process added since then."""
        self._closed = False
        """Nothing more is added by this process."""

    def clip(self, request: ReadRequest, read: Callable[[ReadRequest], VideoClip]) -> VideoClip:
        """What `read(request)` gives, from the folder if it is there, else to be found there from now on.

        Raises:
            VideoReadError: the file is not to be found, or does not answer within the time limit; errors of `read`.
        """
        key = _key(request)
        name = blake2b(key.encode(), digest_size=20).hexdigest()
        path = self.folder / name[:2] / name[2:]
        clip = _stored(path, key)
        if clip is None:
            clip = read(request)
            self._store(path, key, clip)
        return clip

    def _store(self, path: Path, key: str, clip: VideoClip) -> None:
        frames = clip.frames.numpy().data.cast("B")
        if self._closed or not self._has_room(len(frames)):
            return
        header = {
            "key": key,
            "shape": list(clip.frames.shape),
            "sample_fps": clip.sample_fps,
            "is_video": clip.is_video,
        }
        line = json.dumps(header).encode() + b"\n"
        partial = path.with_name(f"{uuid4().hex}{PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                file.write(line)
                file.write(_checksum(line, frames))
                file.write(frames)
            partial.replace(path)  # not brought to the disk first: the checksum finds what a power cut loses
        except OSError as error:
            self._closed = True
            _log.warning("clip_cache: nothing more is added to %s by this process: %s", self.folder, error)
            with suppress(OSError):
                partial.unlink()
        else:
            self._added += len(frames)

    def _has_room(self, size: int) -> bool:
        if self._size is None or self._added > self.limit // 100:
            self._size, self._added = _folder_size(self.folder), 0
        self._closed = self._size + self._added + size > self.limit
        if self._closed:
            _log.warning(
                "clip_cache: %s holds %.1f GB of at most %.1f GB; further clips are decoded each time. Raise "
                "clip_cache.max_gigabytes, or delete the folder where its clips are of other data or settings.",
                self.folder,
                (self._size + self._added) / 1e9,
                self.limit / 1e9,
            )
        return not self._closed


def _key(request: ReadRequest) -> str:
    """What the frames follow from, as JSON."""
    times = None if request.times is None else (str(request.times.start), str(request.times.end))
    bounds = {name: value for name, value in asdict(request.media).items() if name != "timeout"}
    key = {
        "format": FORMAT,
        "task": request.task,
        "file": asdict(_identity(request)),
        "times": times,
        "frames": asdict(request.config),
        "media": bounds,
        "reader": request.reader,
        "versions": _versions(request.reader),
    }
    return json.dumps(key, sort_keys=True)


def _identity(request: ReadRequest) -> FileIdentity:
    """Of the file, as the reader process finds it: asking a stalled network disk would hold this process."""
    request = replace(request, task="identity")
    events = decode(request) if request.media.timeout is None else decode_elsewhere(request)
    (identity,) = events
    assert isinstance(identity, FileIdentity), f"asked for the identity, got {identity}"
    return identity


@cache
def _versions(reader: ReaderName) -> dict[str, str]:
    """Releases of what decodes and resizes."""
    names = {"av", "pillow", "torchvision"} | ({reader} - {"pyav"})
    found = {}
    for name in sorted(names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"  # a reader that is not installed fails when it is used
    return found


def _stored(path: Path, key: str) -> VideoClip | None:
    """The entry at `path`; None where there is none, or one that is damaged and will be written anew."""
    try:
        with path.open("rb") as file:
            line, checksum = file.readline(), file.read(CHECKSUM_SIZE)
            header: dict[str, Any] = json.loads(line)
            pixels = bytearray(prod(header["shape"]))
            whole = file.readinto(pixels) == len(pixels) and not file.read(1)
        if not whole or header["key"] != key or checksum != _checksum(line, pixels):
            raise ValueError("the content is not what was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        _log.warning("clip_cache: %s cannot be used and is written anew: %s", path, error)
        return None
    frames = torch.from_numpy(np.frombuffer(pixels, dtype=np.uint8).reshape(header["shape"]))
    return VideoClip(frames=frames, sample_fps=header["sample_fps"], is_video=header["is_video"])


def _checksum(line: bytes, pixels: memoryview | bytearray) -> bytes:
    return zlib.crc32(pixels, zlib.crc32(line)).to_bytes(CHECKSUM_SIZE, "big")


def _folder_size(folder: Path) -> int:
    """Bytes in the folder; what killed programs left half written is removed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                status = path.stat()
                if name.endswith(PARTIAL) and status.st_mtime < time.time() - STALE_SECONDS:
                    path.unlink()
                else:
                    total += status.st_size
            except FileNotFoundError:
                continue  # another process was faster
    return total
