"""A stretch of a video in seconds, as records name it with `start` and `end` (MVBench): which frames it holds.

Times count from the first frame shown. A frame belongs to the range when it appears within it: start <= t < end.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path

from datamodules.video.types import TimeRangeError
from rewards.errors import UserError

END_SLACK = 1
"""Seconds that `end` may lie beyond the end of the video, and is then moved back: annotations name whole seconds or
round up. An end further out was written for another file."""
LARGEST_TIME = 10**9
"""Seconds, about 32 years: no video is longer, and arithmetic with times stays exact and fast."""


@dataclass(frozen=True, kw_only=True)
class TimeRange:
    """From `start` (included) to `end` (excluded; None for the end of the video), in seconds."""

    start: Fraction
    end: Fraction | None

    def within(self, path: Path, duration: Fraction | float) -> tuple[Fraction, Fraction]:
        """The range with its end no later than the video's.

        Args:
            path: named in the error.
            duration: seconds of the video.

        Raises:
            TimeRangeError: the range begins at or after the end of the video, or ends more than `END_SLACK` after it.
        """
        duration = Fraction(duration)
        end = duration if self.end is None else self.end
        if self.start >= duration or end > duration + END_SLACK:
            raise TimeRangeError(
                f"{path}: {self} lies beyond the end of the video, which lasts {float(duration):.3f} s. The times "
                "belong to another file: fetch the whole video (copies that are cut already have no use for `start` "
                "and `end`: remove the fields), or leave the record out."
            )
        return self.start, min(end, duration)

    def frames(
        self, path: Path, times: Sequence[int | Fraction], time_base: Fraction, duration: Fraction
    ) -> tuple[range, Fraction]:
        """The frames that appear within the range, and the seconds that it lasts.

        Args:
            path: named in errors.
            times: when each frame appears, ascending, the first at 0; in ticks.
            time_base: seconds per tick.
            duration: seconds of the video.

        Returns:
            Ordinals of the frames, at least one; seconds.

        Raises:
            TimeRangeError: as `within`; no frame appears within the range.
        """
        start, end = self.within(path, duration)
        ordinals = range(bisect_left(times, start / time_base), bisect_left(times, end / time_base))
        if not ordinals:
            raise self._empty(path, len(times), duration)
        return ordinals, end - start

    def frames_at_rate(self, path: Path, total_frames: int, fps: float) -> tuple[range, Fraction]:
        """`frames` where only an average rate is known: exact at a constant rate."""
        duration = Fraction(total_frames) / Fraction(fps)
        start, end = self.within(path, duration)
        # Rounded, because a rate such as 30000 / 1001 comes as a float and would miss the frame that it should meet.
        first, stop = (math.ceil(round(float(time) * fps, 6)) for time in (start, end))
        ordinals = range(first, min(stop, total_frames))
        if not ordinals:
            raise self._empty(path, total_frames, duration)
        return ordinals, end - start

    def _empty(self, path: Path, total_frames: int, duration: Fraction) -> TimeRangeError:
        return TimeRangeError(
            f"{path}: no frame of the video ({total_frames} frames in {float(duration):.3f} s) appears within {self}. "
            "Widen the range or leave the record out."
        )

    def __str__(self) -> str:
        end = "the end" if self.end is None else f"{float(self.end):g} s"
        return f"the range from {float(self.start):g} s to {end}"


def time_range(start: object, end: object) -> TimeRange | None:
    """Check `start` and `end` of a record or a call; None where both are None, which means the whole video.

    Numbers are taken as they are written: 0.1 is a tenth, not the float nearest to it, so that it meets the frame that
    appears at a tenth of a second.

    Raises:
        UserError: not numbers, negative, or `end` not after `start`.
    """
    if start is None and end is None:
        return None
    first, last = _seconds("start", start) or Fraction(0), _seconds("end", end)
    if first < 0 or (last is not None and last <= first):
        raise UserError(
            f"start is {start!r} and end is {end!r}; needed is 0 <= start < end, in seconds from the first frame."
        )
    return TimeRange(start=first, end=last)


def _seconds(name: str, value: object) -> Fraction | None:
    if value is None:
        return None
    size = abs(value) if isinstance(value, Real) and not isinstance(value, bool) else math.inf
    if size <= LARGEST_TIME:  # pyright: ignore[reportOperatorIssue] - real numbers are declared without an order
        return Fraction(str(value))
    raise UserError(
        f"{name} is {repr(value)[:40]}; it must be a number of seconds up to {LARGEST_TIME:,}, null or absent."
    )
