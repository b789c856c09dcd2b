"""The six video benchmarks: which file, how many questions, which fields divide them, and what goes wrong with them.

Scoring lives elsewhere. A benchmark is evaluated on a data file of records: the published `eval_*.json` as it is
(Video-R1-eval on Hugging Face), or one made from the benchmark's own annotation by `benchmark_converters`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from datamodules.types import VideoRecord

GroupName = Literal["task", "track", "duration", "domain", "aspect", "subject"]


@dataclass(frozen=True, kw_only=True)
class PathTrap:
    """A media path that gives away the wrong copy of a benchmark's videos."""

    part: str
    """Occurs in the `path` of such records."""
    message: str
    """What is wrong with them and how to mend it."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark's data."""

    name: str
    """Key of `BENCHMARKS` and name of its configuration."""
    title: str
    """As its authors write it."""
    file: str
    """Name of the published data file."""
    items: int
    """Questions of the full benchmark; another number makes another score."""
    groups: Mapping[GroupName, tuple[str, ...]]
    """What scores are broken down by -> record fields that may hold it, the first present one counts."""
    group_items: Mapping[str, int] = field(default_factory=dict)
    """Value of a group -> its questions in the full benchmark, where the authors state them."""
    timed_tasks: frozenset[str] = frozenset()
    """Tasks whose questions are about the seconds between the record's `start` and `end` only."""
    seconds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Duration group -> seconds that its videos last, least and most. Between two groups the limit is halfway, which
    finds cut copies and mistaken files, not a video that is a little off."""
    path_traps: tuple[PathTrap, ...] = ()
    notes: str
    """What a reader of the scores must know about the data."""

    def group(self, record: VideoRecord, name: GroupName) -> str | None:
        """The record's value for one of `groups`; None where the file does not state it.

        Raises:
            ValueError: the benchmark has no such group.
        """
        if name not in self.groups:
            raise ValueError(f"{self.title} is not divided by {name!r}; its groups are {', '.join(self.groups)}.")
        values = (record.extra.get(field_name) for field_name in self.groups[name])
        value = next((value for value in values if value is not None), None)
        return None if value is None else str(value)

    def trap(self, record: VideoRecord) -> str | None:
        """Why the record cannot give this benchmark's score, without looking at its media; None if all seems well."""
        for trap in self.path_traps:
            if trap.part in (record.path or ""):
                return f"path is {record.path!r}: {trap.message}"
        task = self.group(record, "task") if self.timed_tasks else None
        missing = [name for name in ("start", "end") if record.extra.get(name) is None]
        if missing and _plain(task or "") in map(_plain, self.timed_tasks):
            return (
                f"{' and '.join(missing)} missing: {self.title}'s task {task!r} asks about a part of the video. Take a "
                "file converted from the benchmark's own annotation, or report the score as unclipped."
            )
        return None

    def fault(self, record: VideoRecord, seconds: float | None) -> str | None:
        """As `trap`, with the length of the record's video known; None if all seems well.

        Args:
            record: of this benchmark.
            seconds: of its video; None for other media.
        """
        group = self.group(record, "duration") if self.seconds else None
        if seconds is not None and group in self.seconds:
            least, most = self.seconds[group]
            if not least <= seconds <= most:
                return (
                    f"the video lasts {seconds:,.0f} s, but {self.title} counts it as {group!r} ({least:,.0f} to "
                    f"{most:,.0f} s). Fetch the whole video, or the one that belongs to the record."
                )
        return self.trap(record)

    def size_differences(self, records: Iterable[VideoRecord]) -> list[str]:
        """Differences to the full benchmark's number of questions, one sentence each."""
        number = sum(1 for _ in records)
        if number == self.items:
            return []
        return [f"{number:,} questions where {self.title} has {self.items:,}: the score is that of a part."]


def _plain(task: str) -> str:
    """`Action Sequence` and `action_sequence` are one task."""
    return task.lower().replace("_", " ")


_TASK_FIELDS = ("task", "task_type", "original_question_type", "question_type")

BENCHMARKS: dict[str, Benchmark] = {
    "vsibench": Benchmark(
        name="vsibench",
        title="VSI-Bench",
        file="eval_vsibench.json",
        items=5130,
        groups={"task": ("original_question_type", "question_type")},
        notes="Direction questions come as easy, medium and hard; the official score counts the three as one task.",
    ),
    "videommmu": Benchmark(
        name="videommmu",
        title="VideoMMMU",
        file="eval_videommmu.json",
        items=900,
        groups={"track": ("track", "original_question_type"), "subject": ("subject",)},
        group_items={"Perception": 300, "Comprehension": 300, "Adaptation": 300},
        path_traps=(
            PathTrap(
                part="question_only",
                message=(
                    "this clip shows the question without the lecture (it serves as the `before` of the knowledge "
                    "gain). Point the record to the full video of the same id."
                ),
            ),
            PathTrap(part="_image.mp4", message="this clip shows the question's picture alone; use the full video."),
        ),
        notes=(
            "Some circulated files point to question-only clips. The picture of an Adaptation question stands at the "
            "end of its video, so the last frame must be among those sampled."
        ),
    ),
    "mmvu": Benchmark(
        name="mmvu",
        title="MMVU",
        file="eval_mmvu.json",
        items=625,
        groups={"subject": ("subject",)},
        notes=(
            "The multiple-choice questions (A to E) of the validation set; its 375 open questions need a judge. The "
            "official score has a GPT model grade the choices too, this one takes the exact letter."
        ),
    ),
    "mvbench": Benchmark(
        name="mvbench",
        title="MVBench",
        file="eval_mvbench.json",
        items=4000,
        groups={"task": _TASK_FIELDS},
        timed_tasks=frozenset(
            {
                "Action Sequence",
                "Action Prediction",
                "Object Interaction",
                "Action Localization",
                "Episodic Reasoning",
            }
        ),
        notes=(
            "20 tasks of 200. Five of them ask about the seconds between `start` and `end`; published scores of the "
            "Video-R1 family read the whole video instead. Folders named `*_segment` hold videos that are cut "
            "already: with them, records must carry no `start` and `end`. Episodic Reasoning comes as folders of "
            "pictures, three a second."
        ),
    ),
    "tempcompass": Benchmark(
        name="tempcompass",
        title="TempCompass",
        file="eval_tempcompass.json",
        items=7540,
        groups={"task": _TASK_FIELDS, "aspect": ("aspect", "dim")},
        group_items={"multi-choice": 1580, "yes_no": 2453, "caption_matching": 1503, "captioning": 2004},
        notes=(
            "Four tasks on 410 videos. The official score has a GPT model grade captioning, and answers of the other "
            "tasks that its rules cannot read."
        ),
    ),
    "videomme": Benchmark(
        name="videomme",
        title="Video-MME",
        file="eval_videomme.json",
        items=2700,
        groups={
            "duration": ("duration",),
            "domain": ("domain",),
            "task": ("task_type", "original_question_type", "question_type"),
        },
        group_items={"short": 900, "medium": 900, "long": 900},
        # Published: less than 2 minutes, 4 to 15, 30 to 60.
        seconds={"short": (0, 3 * 60), "medium": (3 * 60, 22.5 * 60), "long": (22.5 * 60, 75 * 60)},
        notes="900 videos of 11 seconds to one hour, without subtitles. Questions of one video are correlated.",
    ),
}
