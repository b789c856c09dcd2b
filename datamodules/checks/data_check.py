"""What `check data` and `check rewards` find: faults in the data that training would meet only hours later.

No model is loaded. A fault does not stop the check: it is listed with its record, and the check goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.checks.reports import DataReport, Finding, PromptSize, RewardReport
from datamodules.media import read_media, record_times
from datamodules.prompts import PromptTemplate
from datamodules.record_schema import RecordProblem, doubt
from datamodules.types import VideoRecord
from datamodules.video.frame_sampling import FrameConfig, plan_frames
from datamodules.video.types import MediaConfig, MediaPathError, ReaderName, TimeRangeError
from datamodules.video.video_reader import probe_video
from rewards.accuracy import AccuracyReward
from rewards.answer_format import parse_response, wrap_think
from rewards.base import RewardError
from rewards.errors import UserError
from rewards.options import split_option
from rewards.suite import RewardSuite
from rewards.types import ProblemType, RewardInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_data(
    records: Iterable[VideoRecord | RecordProblem],
    check_media: Callable[[VideoRecord], PromptSize | Finding],
    *,
    limit: int | None = None,
    num_threads: int = 1,
) -> DataReport:
    """Check every record and read its media as training would.

    Args:
        records: from `records.scan`, so that broken lines are listed too, or a `RecordSet`.
        check_media: a `MediaCheck`.
        limit: check media and tokens of this many valid records at most; the others are only validated.
        num_threads: records checked at the same time; decoding releases the interpreter lock.
    """
    report = DataReport()

    def to_examine() -> Iterator[VideoRecord]:
        for item in _announced(records, "checking data"):
            if isinstance(item, RecordProblem):
                report.problems.append(_invalid(item))
                continue
            report.counts[item.data_type, item.problem_type] += 1
            if (message := doubt(item)) is not None:
                report.doubts.append(Finding(kind=message, where=item.where, message=message))
            if limit is None or report.counts.total() <= limit:
                yield item

    for result in _mapped(check_media, to_examine(), num_threads):
        if isinstance(result, Finding):
            report.problems.append(result)
        else:
            report.sizes.append(result)
    return report


def check_rewards(records: Iterable[VideoRecord | RecordProblem], suite: RewardSuite) -> RewardReport:
    """Score the records' own answers: the best that a run could reach, and the records on which it could reach nothing.

    The completion is the record's chain of thought (an empty one if it has none) and its solution. Rewards get no
    frames, and words in the place of tokens.

    Args:
        records: from `records.scan`, or a `RecordSet`.
        suite: the rewards of the run to come, accuracy among them.

    Raises:
        UserError: the suite has no accuracy reward.
    """
    accuracy = next((name for name, reward in suite.rewards.items() if isinstance(reward, AccuracyReward)), None)
    if accuracy is None:
        raise UserError(
            f"The rewards ({', '.join(suite.rewards)}) have no AccuracyReward, so there is nothing to check."
        )
    report = RewardReport()
    for record in _announced(records, "checking rewards"):
        if isinstance(record, RecordProblem):
            report.problems.append(_invalid(record))
            continue
        try:
            components = suite.score([_gold_input(record)]).components
        except (RewardError, ValueError) as error:
            report.problems.append(_finding("cannot be scored", record, error))
            continue
        scores = {name: component.item() for name, component in components.items()}
        report.add(record.problem_type, scores)
        if scores[accuracy] <= 0:
            message = f"the gold answer itself gets accuracy 0: {record.solution!r}"
            report.problems.append(Finding(kind="gold answer scores 0", where=record.where, message=message))
        elif scores[accuracy] < 1:
            message = f"accuracy {scores[accuracy]:.3f}: {record.solution!r}"
            report.below_one.append(Finding(kind=record.problem_type, where=record.where, message=message))
        report.problems.extend(_foreign_letter(record))
    return report


def text_token_counter(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> Callable[[VideoRecord], int]:
    """For `MediaCheck`: tokens of a record's prompt besides its vision tokens, generation marker included."""

    def count(record: VideoRecord) -> int:
        tokens = len(tokenizer(template.text(record, tokenizer), add_special_tokens=False).input_ids)
        return tokens - (record.data_type != "text")  # the template writes one token for the media

    return count


@dataclass(frozen=True, kw_only=True)
class MediaCheck:
    """Reads the media of one record and counts the tokens of its prompt."""

    data_root: str | Path
    """Folder that the records' `path` is relative to."""
    config: FrameConfig
    """Frames and pixels of the planned run."""
    count_tokens: Callable[[VideoRecord], int] | None = None
    """Text tokens of a record's prompt, as `text_token_counter` counts them; None counts vision only."""
    max_prompt_tokens: int | None = None
    """Longer prompts are problems; None for no limit."""
    decode: bool = True
    """Read the sampled frames; else only a video's headers and first frame (images are always read)."""
    reader: ReaderName = "pyav"
    media: MediaConfig = MediaConfig()  # noqa: RUF009 - frozen
    find_fault: Callable[[VideoRecord, float | None], str | None] | None = None
    """Takes a record with sound media and the seconds of its video that are read (None for other media); returns what
    else is wrong with it."""

    def __call__(self, record: VideoRecord) -> PromptSize | Finding:
        kind = "start or end is no time"
        try:
            times = record_times(record)
            kind = "media unreadable"
            vision, seconds = self._vision(record, times)
            kind = "prompt cannot be built"
            text = self.count_tokens(record) if self.count_tokens else 0
        except MediaPathError as error:
            return _finding("media missing or outside the data root", record, error)
        except TimeRangeError as error:
            return _finding("start or end beyond the video", record, error)
        except ValueError as error:  # VideoReadError is one.
            return _finding(kind, record, error)
        fault = None if self.find_fault is None else self.find_fault(record, seconds)
        if fault is not None:
            return Finding(kind="not the data of the benchmark", where=record.where, message=fault)
        size = PromptSize(where=record.where, vision=vision, text=text)
        if self.max_prompt_tokens is not None and size.total > self.max_prompt_tokens:
            message = (
                f"{size.total:,} tokens ({vision:,} of vision), more than max_prompt_tokens "
                f"{self.max_prompt_tokens:,}. Lower the number of frames or pixels, raise the limit or leave the "
                "record out."
            )
            return Finding(kind="prompt too long", where=record.where, message=message)
        return size

    def _vision(self, record: VideoRecord, times: Mapping[str, float | None]) -> tuple[int, float | None]:
        """Vision tokens, and the seconds of video that are read."""
        if record.path is None:
            return 0, None
        is_video = record.data_type == "video"
        if is_video and not self.decode:
            video = probe_video(record.path, media=self.media, root=self.data_root, **times)
            plan = plan_frames(video.total_frames, video.fps, video.height, video.width, self.config)
            frames, height, width, fps = len(plan.indices), plan.height, plan.width, plan.sample_fps
        else:
            clip = read_media(record, self.data_root, self.config, reader=self.reader, media=self.media)
            assert clip is not None, "the record has media"
            (frames, _, height, width), fps = clip.frames.shape, clip.sample_fps
        grid = self.config.grid
        tokens = -(-frames // self.config.temporal_patch_size) * (height // grid) * (width // grid)
        return tokens, frames / fps if is_video else None


def _mapped(
    examine: Callable[[VideoRecord], PromptSize | Finding], records: Iterator[VideoRecord], num_threads: int
) -> Iterator[PromptSize | Finding]:
    """Results in the records' order; only a few records per thread are in memory at a time."""
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        while chunk := list(itertools.islice(records, 4 * num_threads)):
            yield from pool.map(examine, chunk)


def _announced(records: Iterable[VideoRecord | RecordProblem], title: str) -> Iterator[VideoRecord | RecordProblem]:
    from tqdm import tqdm

    return iter(tqdm(records, desc=title, unit="record", disable=None))  # a bar in terminals only


def _invalid(problem: RecordProblem) -> Finding:
    return Finding(kind="invalid record", where=problem.where, message=problem.message)


def _finding(kind: str, record: VideoRecord, error: Exception) -> Finding:
    return Finding(kind=kind, where=record.where, message=str(error).removeprefix(f"{record.where}: "))


def _gold_input(record: VideoRecord) -> RewardInput:
    completion = f"{record.process or wrap_think('')}\n{record.solution}"
    return RewardInput(
        record_id=record.problem_id,
        problem_type=record.problem_type,
        problem=record.problem,
        solution=record.solution,
        completions=(completion,),
        completion_tokens=(len(completion.split()),),
        truncated=(False,),
        options=record.options,
        extra=record.extra,
    )


def _foreign_letter(record: VideoRecord) -> list[Finding]:
    """A multiple choice whose gold answer is the letter of none of its listed options."""
    letters = [option.letter for option in map(split_option, record.options) if option]
    if record.problem_type is not ProblemType.MULTIPLE_CHOICE or not letters or len(letters) < len(record.options):
        return []
    answer = parse_response(record.solution).answer
    if answer in letters:
        return []
    message = f"the gold answer is {answer!r}, the options are {', '.join(map(repr, record.options))}"
    return [Finding(kind="gold answer is no option", where=record.where, message=message)]
