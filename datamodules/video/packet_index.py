"""A video's packets in decode order: which frames it shows, and where decoding has to start for each of them.

Built by demuxing alone. Packet timestamps survive decoding unchanged, so frame k in display order is the frame with the
k-th smallest timestamp of the shown packets, whatever the container says about frame counts and rates.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

RANDOM_ACCESS_CODECS = frozenset(
    {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libaom-av1", "mpeg2video", "mpeg4", "mjpeg"}
)
"""Decoders that give the same picture from any keyframe on; others (a GIF paints over its last picture) always begin at
the first."""


class PacketEntry(NamedTuple):
    """The parts of a packet that frame selection needs; times in ticks of the stream's time base."""

    pts: int | None
    dts: int | None
    duration: int
    size: int
    is_keyframe: bool
    is_discard: bool
    """Decoded for others' sake, not shown: it lies outside the edit list."""
    is_corrupt: bool

    @property
    def time(self) -> int:
        """`pts`, which all packets have where `PacketIndex.defect` finds nothing."""
        assert self.pts is not None
        return self.pts


class Run(NamedTuple):
    """A stretch of packets that is decoded without a break, and the frames wanted from it."""

    start: int
    """Position of its first packet, a keyframe."""
    stop: int
    """Position of its last packet (included)."""
    ordinals: list[int]
    """Wanted frames, numbered in display order, ascending."""


@dataclass(frozen=True, kw_only=True)
class PacketIndex:
    """Packets of one video stream.

    Positions count packets in decode order, ordinals count shown frames in display order.
    """

    entries: Sequence[PacketEntry]
    time_base: Fraction
    """Seconds per tick."""
    codec: str
    """Name of the decoder."""
    guessed_times: bool = False
    """The container stores decoding times only (AVI) and the codec may reorder frames."""
    undecodable: frozenset[int] = frozenset()
    """Positions that are known to give no frame."""

    @cached_property
    def keyframes(self) -> list[int]:
        """Positions of the keyframes, ascending."""
        return [position for position, entry in enumerate(self.entries) if entry.is_keyframe]

    @cached_property
    def shown(self) -> list[int]:
        """Position of each shown frame's packet in display order: `shown[ordinal]`.

        Packets before the first keyframe cannot be decoded; packets outside the edit list are marked for discard.
        """
        first = self.keyframes[0]
        positions = [
            position
            for position, entry in enumerate(self.entries)
            if position >= first and not entry.is_discard and position not in self.undecodable
        ]
        return sorted(positions, key=lambda position: self.entries[position].time)

    @cached_property
    def ordinal_at(self) -> dict[int, int]:
        """Position of each shown frame's packet -> the frame's ordinal."""
        return {position: ordinal for ordinal, position in enumerate(self.shown)}

    @cached_property
    def ordinal_of_pts(self) -> dict[int, int]:
        """Presentation time of each shown frame -> its ordinal."""
        return {self.entries[position].time: ordinal for ordinal, position in enumerate(self.shown)}

    @property
    def ticks(self) -> list[int]:
        """When each shown frame appears, counted from the first, in display order."""
        first = self.entries[self.shown[0]].time
        return [self.entries[position].time - first for position in self.shown]

    @cached_property
    def times(self) -> frozenset[int]:
        """Presentation times of all packets, shown or not."""
        return frozenset(entry.time for entry in self.entries)

    @cached_property
    def position_of(self) -> dict[tuple[int | None, int], int]:
        """(presentation time, size) of each packet -> its position, to find one's place after a seek."""
        return {(entry.time, entry.size): position for position, entry in enumerate(self.entries)}

    def defect(self) -> str | None:
        """Why packet timestamps cannot tell which frame is which, or None when they can."""
        if any(entry.pts is None for entry in self.entries):
            return "packets lack presentation times"
        times = [entry.time for entry in self.entries]
        if not self.keyframes or not self.shown:
            return "no packet is marked as a keyframe, or none is shown"
        if self.guessed_times and len(times) > 2 and all(a < b for a, b in pairwise(times)):
            return "its container stores no presentation times and the codec may reorder frames"
        if len(self.position_of) < len(times) or len(self.ordinal_of_pts) < len(self.shown):
            return "packets share presentation times"
        return None

    @property
    def leading(self) -> list[int]:
        """Positions of shown packets that precede the first keyframe in display order.

        They belong to an open group of pictures whose beginning is cut off; only decoding tells which of them appear.
        """
        first_time = self.entries[self.keyframes[0]].time
        return [position for position in self.shown if self.entries[position].time < first_time]

    def seconds(self) -> Fraction | None:
        """From the first shown frame's start to the last one's end; None for one frame of unknown duration.

        The last of several frames counts as long as the mean of the others: outside MP4, packet durations are guesses.
        """
        first, last = self.entries[self.shown[0]], self.entries[self.shown[-1]]
        count = len(self.shown)
        ticks = Fraction((last.time - first.time) * count, count - 1) if count > 1 else first.duration
        return ticks * self.time_base or None

    def start_of(self, position: int) -> int:
        """Position of the last keyframe from which decoding surely yields the packet at `position`.

        A packet shown before the keyframe that it follows (an open group of pictures) refers to the group before, so it
        needs the keyframe before.
        """
        if self.codec not in RANDOM_ACCESS_CODECS:
            return self.keyframes[0]
        which = bisect_right(self.keyframes, position) - 1
        time = self.entries[position].time
        while which > 0 and self.entries[self.keyframes[which]].time > time:
            which -= 1
        return self.keyframes[which]

    def runs(self, ordinals: Collection[int]) -> list[Run]:
        """Stretches of packets to decode for the frames `ordinals`: everything that can be jumped over is left out."""
        runs: list[Run] = []
        for ordinal in sorted(set(ordinals)):
            position = self.shown[ordinal]
            start = self.start_of(position)
            if runs and start <= runs[-1].stop + 1:
                runs[-1] = Run(runs[-1].start, max(runs[-1].stop, position), [*runs[-1].ordinals, ordinal])
            else:
                runs.append(Run(start, position, [ordinal]))
        return runs
