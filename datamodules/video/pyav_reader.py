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
from typing import TYPE_CHECKING

from datamodules.video.packet_index import PacketEntry, PacketIndex, Run
from datamodules.video.time_range import TimeRange
from datamodules.video.types import MediaConfig, unreadable
from datamodules.video.video_file import VideoFile

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

TIMED_FORMATS = frozenset({"mp4", "mpegts", "mpeg", "flv"})
"""FFmpeg's names of containers that always store presentation times."""
TS_PACKET = 188
"""Bytes."""
TS_SYNC = b"\x47"
MISSING_REFERENCE = re.compile(r"mmco|reference|ref with POC|co located|RefPicList", re.IGNORECASE)
"""FFmpeg's words for a frame that another one refers to and that was not decoded."""
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

    def __init__(self, path: str | Path, media: MediaConfig) -> None:
        super().__init__(path, media)
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

        entries, self._packets = [], 0
        try:
            with self.complaints() as complaints:
                for packet in self.container.demux(self.stream):
                    self._packets += packet.dts is not None  # AVI has empty packets for repeated frames
                    if packet.size:
                        flags = (packet.is_keyframe, packet.is_discard, packet.is_corrupt)
                        entries.append(PacketEntry(packet.pts, packet.dts, packet.duration or 0, packet.size, *flags))
        except av.FFmpegError as error:
            raise unreadable(self.path, f"it is damaged or cut off after {len(entries)} packets ({error})") from error
        if not entries:
            raise unreadable(self.path, "its video stream holds no frames")
        name = self.container.format.name
        self._damage = [text.strip() for _, part, text in complaints if part == name]  # not those of codecs' parsers
        codec = self.stream.codec_context
        timed = not TIMED_FORMATS.isdisjoint(self.container.format.name.split(","))
        return PacketIndex(
            entries=entries,
            time_base=self.time_base,
            codec=codec.name,
            guessed_times=bool(codec.has_b_frames) and not timed,
        )

    def _check_complete(self) -> None:
        """Refuse a file that ends early: frames spread over what is left would be taken for the whole clip."""
        entries, time_base = self.index.entries, self.index.time_base
        if entries[-1].is_corrupt:
            raise unreadable(self.path, f"it is cut off within packet {len(entries)}")
        corrupt = next((number for number, entry in enumerate(entries) if entry.is_corrupt), None)
        if corrupt is not None and self.media.strict_decoding:
            raise unreadable(self.path, f"packet {corrupt} of {len(entries)} is damaged")
        if self._ends_within_ts_packet():
            raise unreadable(self.path, f"it is cut off: its size is no multiple of MPEG-TS's {TS_PACKET} bytes")
        times = [entry.pts for entry in entries if entry.pts is not None and not entry.is_discard] or [0]
        first, end = float(min(times) * time_base), float((max(times) + entries[-1].duration) * time_base)
        missing, declared = self.missing_seconds(first, end, self._packets)
        if missing > max(MISSING_SECONDS, MISSING_SHARE * declared):
            raise unreadable(
                self.path, f"it is cut off: {declared - missing:.2f} s of the {declared:.2f} s that its header names"
            )
        if self._damage:
            raise unreadable(self.path, f"its container is damaged ({self._damage[0]})")

    def _ends_within_ts_packet(self) -> bool:
        """Whether an MPEG-TS file of packets of the usual length (disks and tapes add bytes) ends within one."""
        if self.container.format.name != "mpegts" or self.path.stat().st_size % TS_PACKET == 0:
            return False
        with self.path.open("rb") as file:
            head = file.read(4 * TS_PACKET)
        return head[::TS_PACKET] == TS_SYNC * 4

    def _without_broken_leaders(self) -> PacketIndex:
        """The index without those frames at the start that refer to a cut-off group of pictures and do not decode."""
        leading, first = self.index.leading, self.index.keyframes[0]
        packets = islice(self._packets_from(first), max(leading) - first + 1)
        codec, intact = self.stream.codec_context, set()
        for packet in chain(packets, [None]):
            frames = self._decode_packet(codec, packet, may_fail=True)
            intact.update(frame.pts for frame in frames if not frame.is_corrupt)
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
        begin = index.entries[run.start].time
        wanted, expected = set(run.ordinals), set[int]()
        previous, may_skip, is_open = -1, False, False
        # The None at the end drains the decoder: its delayed frames come out without further packets.
        for position, packet in enumerate(chain(packets, [None]), run.start):
            ordinal = index.ordinal_at.get(position) if packet is not None else None
            skip = may_skip and ordinal not in wanted
            codec.skip_frame = "NONREF" if skip else "DEFAULT"
            if ordinal is not None and not skip and index.entries[position].time >= begin:
                expected.add(ordinal)
            # What precedes the keyframe in display order refers to frames that were not decoded.
            leads = packet is not None and position != run.start and index.entries[position].time < begin
            is_open |= leads
            for frame in self._decode_packet(codec, packet, may_fail=leads, lacks_references=is_open):
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

    def _decode_packet(
        self, codec: VideoCodecContext, packet: Packet | None, *, may_fail: bool, lacks_references: bool = False
    ) -> list[VideoFrame]:
        """Frames that come out after `packet`; none of a packet that fails and may fail.

        Args:
            codec: the decoder.
            packet: None drains the decoder.
            may_fail: it refers to frames that were not decoded.
            lacks_references: packets before it did: the decoder still looks for what it was told to forget.

        Raises:
            IndexMismatch: the decoder reports damage.
            av.FFmpegError: it fails.
        """
        import av

        try:
            with self.complaints() as complaints:
                frames = codec.decode(packet)
        except av.FFmpegError:
            if may_fail:
                return []
            raise
        damage = [text.strip() for *_, text in complaints if not (lacks_references and MISSING_REFERENCE.search(text))]
        if damage and not may_fail:
            raise IndexMismatch(f"the decoder reports damage ({damage[0]})")
        return frames

    def _packets_from(self, start: int) -> Iterator[Packet]:
        """Packets from position `start` on; the container is asked to seek, and its answer is checked."""
        entry = self.index.entries[start]
        self.container.seek(entry.time if entry.dts is None else entry.dts, stream=self.stream)
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
            if due == start:
                if position is None or position < start:
                    continue
                if position > start:
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

    def __init__(self, path: str | Path, media: MediaConfig) -> None:
        super().__init__(path, media)
        times = [frame.pts for frame in self._decoded()]
        self.total_frames = len(times)
        """Frames shown."""
        if not self.total_frames:
            self.container.close()
            raise unreadable(self.path, "no frame of its video stream can be decoded")
        known = [time for time in times if time is not None]
        ticks = Fraction((max(known) - min(known)) * len(times), len(times) - 1) if len(known) > 1 else 0
        self.duration: Fraction = ticks * self.time_base or self.total_frames / self.nominal_rate
        """Seconds; the frames' times are right as a set, even where they stand at the wrong frames."""
        self._ticks = sorted(time - min(known) for time in known) if len(known) == len(times) else None

    def within(self, times: TimeRange) -> tuple[range, Fraction]:
        """As `IndexedVideo.within`; where frames lack times, they are taken to appear at a constant rate."""
        if self._ticks is not None:
            return times.frames(self.path, self._ticks, self.time_base, self.duration)
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
        packets = (packet for packet in self.container.demux(self.stream) if packet.size)
        try:
            for number, packet in enumerate(chain(packets, [None]), start=1):
                with self.complaints() as complaints:
                    frames = codec.decode(packet)
                if complaints:
                    raise unreadable(
                        self.path, f"packet {number} of its video stream is damaged ({complaints[0][2].strip()})"
                    )
                yield from frames
        except av.FFmpegError as error:
            self.container.close()
            raise unreadable(self.path, f"packet {number} of its video stream cannot be decoded ({error})") from error
