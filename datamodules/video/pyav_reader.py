"""Exact frame selection with PyAV: only what the wanted frames need is decoded, and each frame is known by its time.

`IndexedVideo` is the normal way. Where the decoder contradicts the packet index (two packets for one frame, keyframes
that are none), `CountedVideo` decodes the whole file instead: slower, equally exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.video.packet_index import PacketEntry, PacketIndex, Run
from datamodules.video.time_range import TimeRange
from datamodules.video.types import unreadable
from datamodules.video.video_file import VideoFile

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

TIMED_FORMATS = frozenset({"mp4", "mpegts", "mpeg", "flv"})
"""FFmpeg's names of containers that always store presentation times."""
MISSING_SECONDS = 0.5
MISSING_SHARE = 0.05
"""A file counts as cut off when its packets end earlier than its header says by more than both of these."""


class IndexMismatch(Exception):
    """The decoder's output contradicts the packet index."""


class IndexedVideo(VideoFile):
    """A video whose packets tell which frames it shows.

    Raises:
        VideoReadError: as VideoFile; the file is cut off.
        IndexMismatch: packet timestamps of this file are no guide.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._interlaced = False
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
        return self.index.seconds() or self.total_frames / self.nominal_rate

    def within(self, times: TimeRange) -> tuple[range, Fraction]:
        """The frames that appear within a range, and the seconds that it lasts.

        Raises:
            TimeRangeError: the range lies beyond the end of the video, or no frame appears within it.
        """
        return times.frames(self.path, self.index.ticks, self.index.time_base, self.duration)

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
        declared = self.declared_seconds
        if declared is None or not times:
            return
        found = float((max(times) - min(times) + entries[-1].duration) * time_base)
        if declared - found > max(MISSING_SECONDS, MISSING_SHARE * declared):
            raise unreadable(self.path, f"it is cut off: {found:.2f} s of the {declared:.2f} s that its header names")

    def _without_broken_leaders(self) -> PacketIndex:
        """The index without those frames at the start that refer to a cut-off group of pictures and do not decode."""
        leading, first = self.index.leading, self.index.keyframes[0]
        packets = islice(self._packets_from(first), max(leading) - first + 1)
        codec, intact = self.stream.codec_context, set()
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
        packets = islice(self._packets_from(run.start), run.stop - run.start + 1)
        index, codec = self.index, self.stream.codec_context  # after the search for packets, which may reopen the file
        begin = index.entries[run.start].pts
        wanted, expected = set(run.ordinals), set[int]()
        previous, may_skip = -1, False
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
                self._interlaced |= frame.interlaced_frame
                may_skip = codec.name == "h264" and not self._interlaced
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
        self.duration: Fraction = ticks * self.stream.time_base or self.total_frames / self.nominal_rate
        """Seconds; the frames' times are right as a set, even where they stand at the wrong frames."""
        self._ticks = sorted(time - min(known) for time in known) if len(known) == len(times) else None

    def within(self, times: TimeRange) -> tuple[range, Fraction]:
        """As `IndexedVideo.within`; where frames lack times, they are taken to appear at a constant rate."""
        if self._ticks is not None:
            return times.frames(self.path, self._ticks, self.stream.time_base, self.duration)
        return times.frames(self.path, range(self.total_frames), self.duration / self.total_frames, self.duration)

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
