"""Items of a run to look at: chosen evenly over outcomes and groups, with the frames that the model saw."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.media import read_media
from datamodules.types import VideoRecord
from datamodules.video.frame_sampling import FrameConfig
from datamodules.video.video_reader import ReaderName
from lightning_modules.evaluation.report.run_folder import EvaluationRun
from lightning_modules.pictures.film_strip import film_strip
from rewards.answer_format import wrap_answer
from rewards.evaluation.predictions import Prediction
from rewards.evaluation.scoring import ScoringRule
from rewards.types import ProblemType

STRIP_WIDTH, STRIP_FRAMES, JPEG_QUALITY = 880, 8, 72
"""A strip takes 20 to 60 KB."""

Outcome = Literal["right", "partly right", "wrong", "failed", "ungraded"]
Change = Literal["gained", "lost", "same"]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A film strip as JPEG, and its size in pixels."""

    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item on the page."""

    prediction: Prediction
    outcome: Outcome
    """Under the run's first protocol that grades it."""
    disagree: bool
    """Two protocols score it differently."""
    groups: tuple[str, ...]
    """`field/value` for every field that it is counted by."""
    strip: Strip | None
    """None where there are no frames."""
    strip_note: str
    """What the strip shows, or why there is none."""
    failure: str | None
    """Why there is no answer, without folders of the machine; None if there is one."""
    other: Prediction | None
    """The same item of the run that this one is compared with."""
    change: Change | None
    """Whether this run answers better than the other; None without another run."""


def make_examples(
    run: EvaluationRun, other: EvaluationRun | None, *, limit: int, data_root: Path | None
) -> list[Example]:
    """Up to `limit` examples of each benchmark, in the order of the run.

    Args:
        run: whose items are shown.
        other: the run that it is compared with; of a benchmark that both have, the items are the same.
        limit: of each benchmark.
        data_root: folder that the items' paths are relative to; None leaves the film strips out.
    """
    settings = run.manifest.identity.settings
    profile, reader = settings.frames, settings.reader
    examples = []
    for benchmark, predictions in run.predictions.items():
        others = {item.problem_id: item for item in other.predictions.get(benchmark, ())} if other else {}

        def kind(item: Prediction, others: dict[str, Prediction] = others) -> tuple[Outcome, Change | None]:
            return outcome_of(item), change_of(item, others.get(item.problem_id))

        for prediction in choose(predictions, limit, kind=kind):
            strip, note = _strip(prediction, data_root, profile, reader)
            roots = [] if data_root is None else [data_root]
            outcome, change = kind(prediction)
            scores = {score for protocol, score in prediction.scores.items() if protocol not in prediction.ungraded}
            examples.append(
                Example(
                    prediction=prediction,
                    outcome=outcome,
                    disagree=len(scores) > 1,
                    groups=tuple(f"{field}/{value}" for field, value in prediction.categories.items()),
                    strip=strip,
                    strip_note=run.without_folders(note, *roots),
                    failure=None if prediction.failure is None else run.without_folders(prediction.failure),
                    other=others.get(prediction.problem_id),
                    change=change,
                )
            )
    return examples


def outcome_of(prediction: Prediction) -> Outcome:
    """Under the first protocol of the run that grades the item."""
    if prediction.failure is not None:
        return "failed"
    score = leading_score(prediction)
    if score is None:
        return "ungraded"
    return "right" if score == 1 else "wrong" if score == 0 else "partly right"


def change_of(prediction: Prediction, other: Prediction | None) -> Change | None:
    """How the answer's score compares with the other run's; None where either has none."""
    ours, theirs = leading_score(prediction), leading_score(other) if other else None
    if ours is None or theirs is None:
        return None
    return "gained" if ours > theirs else "lost" if ours < theirs else "same"


def leading_score(prediction: Prediction) -> float | None:
    """Score under the first protocol that grades the item; None for a failed item or without such a protocol."""
    graded: list[ScoringRule] = [name for name in prediction.scores if name not in prediction.ungraded]
    return prediction.scores[graded[0]] if graded else None


def choose(
    predictions: Sequence[Prediction], limit: int, *, kind: Callable[[Prediction], Hashable]
) -> list[Prediction]:
    """At most `limit` items in file order: as many of each kind as there are or fit, and of each kind from all groups.

    Nothing is drawn at random: the first item of every group and kind comes before the second of any.
    """

    def group(item: Prediction) -> tuple[Hashable, str | None]:
        fields = next(iter(BENCHMARKS[item.benchmark].breakdowns.values()))
        return kind(item), next((item.categories[field] for field in fields if field in item.categories), None)

    return sorted(_dealt(_dealt(predictions, group), kind)[:limit], key=lambda item: item.index)


def _dealt(items: Sequence[Item], key: Callable[[Item], Hashable]) -> list[Item]:
    """The first item of every key, then the second of every key, and so on."""
    seen: Counter[Hashable] = Counter()
    places = []
    for item in items:
        places.append(seen[key(item)])
        seen[key(item)] += 1
    return [items[place] for place in sorted(range(len(items)), key=lambda place: places[place])]


def _strip(
    prediction: Prediction, data_root: Path | None, profile: FrameConfig, reader: ReaderName
) -> tuple[Strip | None, str]:
    if prediction.path is None:
        return None, "A question without media."
    if data_root is None:
        return None, f"{prediction.path}, no frames shown"
    try:
        clip = read_media(_record(prediction), data_root, profile, reader=reader)
    except ValueError as error:
        # The report is about the run, which may have had the file or may have failed on it: the card says what is
        # wrong with it now.
        return None, f"No frames: {error}"
    assert clip is not None, "an item with a path has media"
    shown = film_strip(
        clip.frames,
        width=STRIP_WIDTH,
        max_frames=STRIP_FRAMES,
        seconds_per_frame=1 / clip.sample_fps if clip.is_video and clip.sample_fps else None,
    )
    buffer = io.BytesIO()
    shown.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    strip = Strip(jpeg=buffer.getvalue(), width=shown.width, height=shown.height)
    return strip, _strip_note(prediction, len(clip.frames), clip.is_video)


def _strip_note(prediction: Prediction, frames: int, is_video: bool) -> str:
    if not is_video:
        return str(prediction.path)
    shown = min(frames, STRIP_FRAMES)
    note = f"{prediction.path}, {shown} of the {frames} frames that the model saw"
    if prediction.start is None and prediction.end is None:
        return note
    end = "its end" if prediction.end is None else f"{prediction.end:g} s"
    return f"{note}; between {prediction.start or 0:g} s and {end} of the video, times counted from there"


def _record(prediction: Prediction) -> VideoRecord:
    times = {name: value for name in ("start", "end") if (value := getattr(prediction, name)) is not None}
    return VideoRecord(
        problem_id=prediction.problem_id,
        problem=prediction.question,
        data_type=prediction.data_type,
        problem_type=ProblemType(prediction.problem_type),
        solution=wrap_answer(prediction.gold),
        path=prediction.path,
        extra=times,
        file=Path(prediction.benchmark),
        line=prediction.index + 1,
    )
