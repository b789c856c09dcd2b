"""Exact frame selection with PyAV: only what the wanted frames need is decoded, and each frame is known by its time.

`IndexedVideo` is the normal way. Where the decoder contradicts the packet index (two packets for one frame, keyframes
that are none), `CountedVideo` decodes the whole file instead: slower, equally exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from datamodules.packet_index import PacketEntry, PacketIndex, Run
from datamodules.video_metadata import unreadable

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

DECODER_THREADS = 1
"""Per file: data loader workers already read several files at once."""
TIMED_FORMATS = frozenset({"mp4", "mpegts", "mpeg", "flv"})
"""FFmpeg's names of containers that always store presentation times."""
MISSING_SECONDS = 0.5
MISSING_SHARE = 0.05
"""A file counts as cut off when its packets end earlier than its header says by more than both of these."""


class IndexMismatch(Exception):
    """The decoder's output contradicts the packet index."""


class VideoFile:
    """An open file with one video stream of interest; a context manager.

    Args:
        path: a file that FFmpeg can demux.

    Raises:
        VideoReadError: the file does not exist, is no media file or has no video stream.
    """

    def __init__(self, path: str | Path) -> None:
        from av.video.reformatter import VideoReformatter

        self.path = Path(path)
        self._reformatter = VideoReformatter()
        self._open()

    def _open(self) -> None:
        import av

        try:
            self.container = av.open(str(self.path), metadata_errors="ignore")
        except FileNotFoundError as error:
            raise unreadable(self.path, "the file does not exist", "Check the path and the data root.") from error
        except av.FFmpegError as error:
            raise unreadable(self.path, f"it cannot be opened as a video ({error})") from error
        streams = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            self.container.close()
            raise unreadable(self.path, "it has no video stream", "Leave the record out or name another file.")
        self.stream = streams[0]
        self.stream.thread_count = DECODER_THREADS
        self.stream.thread_type = "NONE"

    def reopen(self) -> None:
        """Go back to the beginning, with a fresh decoder: sure in every container, unlike a seek."""
        self.container.close()
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def rgb(self, frame: VideoFrame) -> Tensor:
        """The decoded frame as uint8 [3, H, W], turned upright; colours equal `frame.to_ndarray(format="rgb24")`."""
        array = self._reformatter.reformat(frame, format="rgb24", threads=DECODER_THREADS).to_ndarray()
        image = torch.from_numpy(array).permute(2, 0, 1)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return image if matrix is None else upright(image, np.frombuffer(matrix, dtype=np.int32).tolist())


class IndexedVideo(VideoFile):
    """A video whose packets tell which frames it shows.

    Raises:
        VideoReadError: as VideoFile; the file is cut off.
        IndexMismatch: packet timestamps of this file are no guide.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        try:
            self.index = self._scan()
            self._check_complete()
            defect = self.index.defect()
            if defect:
                raise IndexMismatch(defect)
            if self.index.leading:
                self.index = self._without_broken_leaders()
        except BaseException:
            self.container.close()
            raise

    @property
    def total_frames(self) -> int:
        """Frames shown."""
        return len(self.index.shown)

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame's start to the last one's end."""
        return self.index.seconds() or self.total_frames / _nominal_rate(self)

    def frames(self, ordinals: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """(ordinal, decoded frame) of the wanted frames in display order.

        Raises:
            IndexMismatch: the decoder contradicts the packet index, or reports damage.
        """
        import av

        try:
            for run in self.index.runs(ordinals):
                yield from self._decode(run)
        except av.FFmpegError as error:
            raise IndexMismatch(f"the decoder failed ({error})") from error

    def _scan(self) -> PacketIndex:
        """Demux the whole stream once, without decoding."""
        import av

        entries = []
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    flags = (packet.is_keyframe, packet.is_discard, packet.is_corrupt)
                    entries.append(PacketEntry(packet.pts, packet.dts, packet.duration or 0, packet.size, *flags))
        except av.FFmpegError as error:
            raise unreadable(self.path, f"it is damaged or cut off after {len(entries)} packets ({error})") from error
        if not entries:
            raise unreadable(self.path, "its video stream holds no frames")
        codec = self.stream.codec_context
        timed = not TIMED_FORMATS.isdisjoint(self.container.format.name.split(","))
        return PacketIndex(
            entries=entries,
            time_base=self.stream.time_base,
            codec=codec.name,
            guessed_times=bool(codec.has_b_frames) and not timed,
        )

    def _check_complete(self) -> None:
        """Refuse a file that ends early: frames spread over what is left would be taken for the whole clip."""
        entries, time_base = self.index.entries, self.index.time_base
        if entries[-1].is_corrupt:
            raise unreadable(self.path, f"it is cut off within packet {len(entries)}")
        times = [entry.pts for entry in entries if entry.pts is not None and not entry.is_discard]
        declared = _declared_seconds(self)
        if declared is None or not times:
            return
        found = float((max(times) - min(times) + entries[-1].duration) * time_base)
        if declared - found > max(MISSING_SECONDS, MISSING_SHARE * declared):
            raise unreadable(self.path, f"it is cut off: {found:.2f} s of the {declared:.2f} s that its header names")

    def _without_broken_leaders(self) -> PacketIndex:
        """The index without those frames at the start that refer to a cut-off group of pictures and do not decode."""
        leading, first = self.index.leading, self.index.keyframes[0]
        codec, intact = self.stream.codec_context, set()
        packets = islice(self._packets_from(first), max(leading) - first + 1)
        for packet in chain(packets, [None]):
            intact.update(frame.pts for frame in codec.decode(packet) if not frame.is_corrupt)
        broken = frozenset(position for position in leading if self.index.entries[position].pts not in intact)
        return replace(self.index, undecodable=broken)

    def _decode(self, run: Run) -> Iterator[tuple[int, VideoFrame]]:
        """Decode one run and check what comes out against the index.

        H.264 frames that no other frame refers to are skipped inside the decoder unless wanted: exact by definition.
        Interlaced video is left alone (a frame's two fields may differ in this), other codecs too (in HEVC and VP9
        "not referred to" holds with conditions).
        """
        index, codec = self.index, self.stream.codec_context
        begin = index.entries[run.start].pts
        wanted, expected = set(run.ordinals), set[int]()
        previous, may_skip = -1, False
        packets = islice(self._packets_from(run.start), run.stop - run.start + 1)
        # The None at the end drains the decoder: its delayed frames come out without further packets.
        for position, packet in enumerate(chain(packets, [None]), run.start):
            ordinal = index.ordinal_at.get(position) if packet is not None else None
            skip = may_skip and ordinal not in wanted
            codec.skip_frame = "NONREF" if skip else "DEFAULT"
            if ordinal is not None and not skip and index.entries[position].pts >= begin:
                expected.add(ordinal)
            for frame in codec.decode(packet):
                if frame.pts not in index.times:
                    raise IndexMismatch(f"a frame came out at tick {frame.pts}, where no packet is")
                ordinal = index.ordinal_of_pts.get(frame.pts)
                if ordinal is None:
                    continue
                if ordinal <= previous:
                    raise IndexMismatch(f"frames {previous} and {ordinal} came out in this order")
                previous = ordinal
                may_skip = codec.name == "h264" and not frame.interlaced_frame
                expected.discard(ordinal)
                if ordinal in wanted:
                    if frame.is_corrupt:
                        raise IndexMismatch(f"frame {ordinal} is damaged")
                    wanted.discard(ordinal)
                    yield ordinal, frame
        missing = wanted | expected
        if missing:
            raise IndexMismatch(f"no frame came out for {len(missing)} packets, frame {min(missing)} first")

    def _packets_from(self, start: int) -> Iterator[Packet]:
        """Packets from position `start` on; the container is asked to seek, and its answer is checked."""
        entry = self.index.entries[start]
        self.container.seek(entry.pts if entry.dts is None else entry.dts, stream=self.stream)
        packets = self._walk(start)
        first = next(packets, None)
        if first is None:
            self.reopen()
            packets = self._walk(start)
            first = next(packets, None)
        if first is None:
            raise IndexMismatch(f"packet {start} was not found again")
        return chain([first], packets)

    def _walk(self, start: int) -> Iterator[Packet]:
        """Read on to position `start` and give the packets from there; nothing if the place is already past it."""
        due = start
        for packet in self.container.demux(self.stream):
            if not packet.size:
                continue
            position = self.index.position_of.get((packet.pts, packet.size))
            if due == start and (position is None or position < start):
                continue
            if due == start and position > start:
                return
            if position != due:
                raise IndexMismatch(f"packet {due} was not found in its place again")
            due += 1
            yield packet


class CountedVideo(VideoFile):
    """A video that is decoded in full, once to count its frames and once to pick some: the last resort.

    Raises:
        VideoReadError: as VideoFile; a packet cannot be decoded; nothing can.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        times = [frame.pts for frame in self._decoded()]
        self.total_frames = len(times)
        """Frames shown."""
        if not self.total_frames:
            self.container.close()
            raise unreadable(self.path, "no frame of its video stream can be decoded")
        known = [time for time in times if time is not None]
        ticks = Fraction((max(known) - min(known)) * len(times), len(times) - 1) if len(known) > 1 else 0
        self.duration: Fraction = ticks * self.stream.time_base or self.total_frames / _nominal_rate(self)
        """Seconds; the frames' times are right as a set, even where they stand at the wrong frames."""

    def frames(self, ordinals: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """(ordinal, decoded frame) of the wanted frames in display order.

        Raises:
            VideoReadError: a wanted frame is damaged.
        """
        self.reopen()
        wanted = set(ordinals)
        for ordinal, frame in enumerate(self._decoded()):
            if ordinal in wanted:
                if frame.is_corrupt:
                    raise unreadable(self.path, f"frame {ordinal} of {self.total_frames} is damaged")
                yield ordinal, frame

    def _decoded(self) -> Iterator[VideoFrame]:
        import av

        codec, number = self.stream.codec_context, 0
        try:
            for packet in self.container.demux(self.stream):
                number += 1
                if packet.size:
                    yield from codec.decode(packet)
            yield from codec.decode(None)
        except av.FFmpegError as error:
            self.container.close()
            raise unreadable(self.path, f"packet {number} of its video stream cannot be decoded ({error})") from error


def upright(image: Tensor, matrix: Sequence[int]) -> Tensor:
    """Apply a display matrix (ISO 14496-12): mirror and turn by the nearest multiple of 90 degrees.

    Args:
        image: [..., H, W].
        matrix: a, b, u, c, d, v, x, y, w; a pixel (p, q) = (column, row) is shown at (a p + c q + x, b p + d q + y).

    Returns:
        [..., H, W] or [..., W, H].
    """
    a, b, _, c, d, *_ = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, column_sign, row_sign = image.transpose(-2, -1), c, b
    else:
        column_sign, row_sign = a, d
    flipped = [axis for axis, sign in ((-1, column_sign), (-2, row_sign)) if sign < 0]
    return image.flip(flipped) if flipped else image


def _nominal_rate(video: VideoFile) -> Fraction:
    """Frames per second as the container or the codec claims."""
    rate = video.stream.average_rate or video.stream.guessed_rate
    if not rate:
        raise unreadable(video.path, "its frame rate is unknown")
    return rate


def _declared_seconds(video: VideoFile) -> float | None:
    """Length of the video stream by the file's header, None where the format has no such field.

    Elsewhere FFmpeg estimates a duration from the bit rate, which proves nothing.
    """
    formats = video.container.format.name.split(",")
    if "mp4" in formats and video.stream.duration is not None:
        return float(video.stream.duration * video.stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", video.stream.metadata.get("DURATION", ""))
    if "matroska" in formats and tag:
        hours, minutes, seconds = tag.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return None
