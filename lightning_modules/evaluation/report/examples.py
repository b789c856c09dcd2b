"""Items of a run to look at: chosen evenly over outcomes and categories, with the frames that the model saw."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.media import read_media
from datamodules.types import VideoRecord
from datamodules.video.frame_sampling import FrameConfig
from datamodules.video.types import ReaderName
from lightning_modules.evaluation.report.run_folder import EvaluationRun
from lightning_modules.pictures.film_strip import MAX_FRAMES, film_strip
from rewards.answer_format import parse_response, wrap_answer
from rewards.evaluation.predictions import Prediction
from rewards.types import ProblemType

STRIP_WIDTH, JPEG_QUALITY = 880, 72
"""A strip takes 20 to 60 KB."""

Outcome = Literal["right", "partly right", "wrong", "failed", "ungraded"]
Change = Literal["better than the other run", "worse than the other run", "as the other run"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item on the page."""

    prediction: Prediction
    other: Prediction | None
    """The same item of the run that this one is compared with."""
    strip: bytes | None = None
    """The film strip as JPEG; None where there are no frames."""
    strip_note: str = ""
    """What the strip shows, or why there is none."""
    failure: str | None = None
    """Why there is no answer, without folders of the machine; None if there is one."""

    @property
    def outcome(self) -> Outcome:
        """Under the run's first scoring rule that grades the item."""
        if self.prediction.failure is not None:
            return "failed"
        score = _leading_score(self.prediction)
        if score is None:
            return "ungraded"
        return "right" if score == 1 else "wrong" if score == 0 else "partly right"

    @property
    def change(self) -> Change | None:
        """How the answer's score compares with the other run's; None where either has none."""
        ours, theirs = _leading_score(self.prediction), _leading_score(self.other) if self.other else None
        if ours is None or theirs is None:
            return None
        if ours == theirs:
            return "as the other run"
        return "better than the other run" if ours > theirs else "worse than the other run"

    @property
    def rules_disagree(self) -> bool:
        """Two scoring rules give the item different scores."""
        item = self.prediction
        return len({score for rule, score in item.scores.items() if rule not in item.ungraded}) > 1

    @property
    def benchmark(self) -> str:
        """Title of the item's benchmark."""
        return BENCHMARKS[self.prediction.benchmark].title

    @property
    def reasoning(self) -> tuple[str, str]:
        """Title and text: what stands inside the think tags; of a completion in another form, all of it."""
        parsed = parse_response(self.prediction.completion or "")
        if parsed.well_formed and parsed.think is not None:
            return "Reasoning", parsed.think
        return "Whole completion", self.prediction.completion or ""


def make_examples(
    run: EvaluationRun, other: EvaluationRun | None, *, limit: int, data_root: Path | None
) -> list[Example]:
    """Up to `limit` examples of each benchmark, in the order of the run; without film strips if `data_root` is None.

    Of a benchmark that the run and the other one both have, the items are the same.
    """
    settings = run.manifest.identity.settings
    roots = [] if data_root is None else [data_root]
    examples = []
    for benchmark, predictions in run.predictions.items():
        others = {item.problem_id: item for item in other.predictions.get(benchmark, ())} if other else {}
        items = [Example(prediction=item, other=others.get(item.problem_id)) for item in predictions]
        for example in choose(items, limit):
            failure = example.prediction.failure
            strip, note = _strip(example.prediction, data_root, settings.frames, settings.reader)
            examples.append(
                replace(
                    example,
                    strip=strip,
                    strip_note=run.without_folders(note, *roots),
                    failure=None if failure is None else run.without_folders(failure),
                )
            )
    return examples


def _leading_score(prediction: Prediction) -> float | None:
    """Under the first scoring rule that grades the item; None for a failed item or without such a rule."""
    return next((score for rule, score in prediction.scores.items() if rule not in prediction.ungraded), None)


def choose(examples: Sequence[Example], limit: int) -> list[Example]:
    """At most `limit` in file order, evenly from all outcomes and changes, and of each evenly from all categories.

    Nothing is drawn at random: the first item of every category and kind comes before the second of any.
    """

    def kind(example: Example) -> Hashable:
        return example.outcome, example.change

    def category(example: Example) -> Hashable:
        item = example.prediction
        fields = next(iter(BENCHMARKS[item.benchmark].breakdowns.values()), ())
        return kind(example), next((item.categories[field] for field in fields if field in item.categories), None)

    return sorted(_dealt(_dealt(examples, category), kind)[:limit], key=lambda example: example.prediction.index)


def _dealt(items: Sequence[Example], key: Callable[[Example], Hashable]) -> list[Example]:
    """The first item of every key, then the second of every key, and so on."""
    seen: Counter[Hashable] = Counter()
    places = []
    for item in items:
        places.append(seen[key(item)])
        seen[key(item)] += 1
    return [items[place] for place in sorted(range(len(items)), key=lambda place: places[place])]


def _strip(
    prediction: Prediction, data_root: Path | None, frame_config: FrameConfig, reader: ReaderName
) -> tuple[bytes | None, str]:
    if prediction.path is None:
        return None, "A question without media."
    if data_root is None:
        return None, f"{prediction.path}, no frames shown"
    try:
        clip = read_media(_record(prediction), data_root, frame_config, reader=reader)
    except ValueError as error:
        # The report is about the run, which may have had the file or may have failed on it: the card says what is
        # wrong with it now.
        return None, f"No frames: {error}"
    assert clip is not None, "an item with a path has media"
    shown = film_strip(
        clip.frames,
        width=STRIP_WIDTH,
        seconds_per_frame=1 / clip.sample_fps if clip.is_video and clip.sample_fps else None,
    )
    buffer = io.BytesIO()
    shown.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    if not clip.is_video:
        return buffer.getvalue(), prediction.path
    frames = len(clip.frames)
    note = f"{prediction.path}, {min(frames, MAX_FRAMES)} of the {frames} frames that the model saw"
    if prediction.start is not None or prediction.end is not None:
        end = "its end" if prediction.end is None else f"{prediction.end:g} s"
        note += f"; between {prediction.start or 0:g} s and {end} of the video, times counted from there"
    return buffer.getvalue(), note


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
