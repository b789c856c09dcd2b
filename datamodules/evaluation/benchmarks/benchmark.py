"""What a benchmark is: its data file, how its answers are scored and broken down, and what goes wrong with its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datamodules.types import VideoRecord
from rewards.errors import UserError
from rewards.evaluation.scoring import BenchmarkScoring

Row = Mapping[str, Any]
"""One question as the benchmark's authors write it."""
Record = dict[str, Any]
"""One question in the schema of `datamodules.record_schema`."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(BenchmarkScoring):
    """One benchmark: everything that is particular to it."""

    name: str
    """Key of `BENCHMARKS` and name of its configuration."""
    items: int
    """Questions of the full benchmark; another number makes another score."""
    notes: str
    """What a reader of the scores must know about the data."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Model -> accuracy in percent in the main results of VideoRFT (arXiv 2505.12434, NeurIPS 2025)."""

    convert: Callable[..., Iterator[Record]]
    """(content of an annotation file, its part if there are parts, folder=...) -> records with all fields of the
    breakdowns. The folder of the videos is relative to the data root, and its default is the authors'. A UserError
    names a row that lacks a field, or whose answer is none of its options."""
    parts: tuple[str, ...] = ()
    """Tasks or tracks, where the authors publish a file for each and the file does not name it."""
    question_only: bool = False
    """There are clips without the part that teaches the answer; `convert` then takes question_only=True."""

    known_defects: Mapping[str, str] = field(default_factory=dict)
    """Part of a media path -> what is wrong with the files that are named so, and how to fix it."""
    timed_tasks: frozenset[str] = frozenset()
    """Tasks whose questions are about the seconds between the record's `start` and `end` only."""
    durations: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Category of the breakdown `duration` -> seconds that its videos last, least and most. Between two categories the
    limit is halfway, which finds cut copies and mistaken files, not a video that is a little off."""

    @property
    def file(self) -> str:
        """Name of the published data file."""
        return f"eval_{self.name}.json"

    def category(self, record: VideoRecord, breakdown: str) -> str | None:
        """The record's category in one of `breakdowns`, from the first of its fields that the record states; or None.

        Raises:
            UserError: the benchmark has no such breakdown.
        """
        if breakdown not in self.breakdowns:
            raise UserError(f"{self.title} has no breakdown {breakdown!r}; it has {', '.join(self.breakdowns)}.")
        stated = self.categories(record.extra)
        return next((stated[name] for name in self.breakdowns[breakdown] if name in stated), None)

    def defect(self, record: VideoRecord, seconds: float | None = None) -> str | None:
        """Why the record cannot give this benchmark's score; None if all seems well.

        Args:
            record: of this benchmark.
            seconds: how long its video lasts; None where that is not known, and then it is not compared.
        """
        if seconds is not None and self.durations:
            duration = self.category(record, "duration")
            least, most = self.durations.get(duration or "", (seconds, seconds))
            if not least <= seconds <= most:
                return (
                    f"the video lasts {seconds:,.0f} s, but {self.title} counts it as {duration!r} ({least:,.0f} to "
                    f"{most:,.0f} s). Fetch the whole video, or the one that belongs to the record."
                )
        for part, message in self.known_defects.items():
            if part in (record.path or ""):
                return f"path is {record.path!r}: {message}"
        task = self.category(record, "task") if self.timed_tasks else None
        missing = [name for name in ("start", "end") if record.extra.get(name) is None]
        if missing and _plain(task or "") in map(_plain, self.timed_tasks):
            return (
                f"{' and '.join(missing)} missing: {self.title}'s task {task!r} asks about a part of the video. Take a "
                "file converted from the benchmark's own annotation, or report the score as unclipped."
            )
        return None


def _plain(task: str) -> str:
    """`Action Sequence` and `action_sequence` are one task."""
    return task.lower().replace("_", " ")
