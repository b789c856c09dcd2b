"""Reading a stretch of a video: against a full decode that is cut by the frames' own times."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from datamodules.checks.data_check import MediaCheck, check_data
from datamodules.media import read_media
from datamodules.records import RecordFile, scan
from datamodules.video.frame_sampling import FrameConfig, frame_indices, plan_frames
from datamodules.video.time_range import time_range
from datamodules.video.types import TimeRangeError, VideoReadError
from datamodules.video.video_reader import probe_video, read_video, resize
from tests.performance.video_cases import VideoCase, frame_number, write_case

FRAMES = FrameConfig(num_frames=8, min_pixels=28 * 28, max_pixels=64 * 96)
PLAIN = VideoCase(name="plain", width=96, height=64, frames=100)
"""100 frames at 30 per second: 3.333 s."""
VARIABLE = replace(PLAIN, name="variable rate", variable_rate=True, gop=30)
CASES = (
    PLAIN,
    VARIABLE,
    replace(PLAIN, name="b pyramid", extra="b-pyramid=normal:ref=4:weightp=2", b_frames=8, gop=20),
    replace(PLAIN, name="open gop ts", gop=15, open_gop=True, suffix=".ts"),  # its first timestamp is not 0
    replace(PLAIN, name="edit list", trimmed=10, gop=30),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stretches")


def clip_of(case: VideoCase, folder: Path) -> Path:
    path = case.path(folder)
    return path if path.exists() else write_case(case, folder)


def decoded_within(path: Path, start: Fraction, end: Fraction) -> list[torch.Tensor]:
    """Full sequential decode; frames kept by their own times, counted from the first."""
    with av.open(str(path)) as container:
        frames = [(frame.pts * frame.time_base, frame) for frame in container.decode(video=0)]
        return [
            torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            for time, frame in frames
            if start <= time - frames[0][0] < end
        ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("start", "end"), [(0.5, 2.3), (1.9, 2), (0, 0.1), (2.5, None), (None, 1)])
def test_a_stretch_equals_a_full_decode_of_it(
    case: VideoCase, start: float | None, end: float | None, folder: Path
) -> None:
    path = clip_of(case, folder)
    truth = decoded_within(path, Fraction(str(start or 0)), Fraction(str(end or 100)))
    clip = read_video(path, FRAMES, start=start, end=end)
    plan = plan_frames(len(truth), 30, 64, 96, FRAMES)
    assert torch.equal(clip.frames, torch.stack([resize(truth[i], plan.height, plan.width) for i in plan.indices]))
    seconds = (end or probe_video(path).duration) - (start or 0)
    assert clip.sample_fps == pytest.approx(len(plan.indices) / seconds)
    probed = probe_video(path, start=start, end=end)
    assert (probed.total_frames, probed.height, probed.width) == (len(truth), 64, 96)
    assert probed.duration == pytest.approx(seconds)


def test_boundaries_by_hand(folder: Path) -> None:
    # A frame every 1/30 s: frame 15 appears at 0.5 s and belongs to the stretch, frame 21 at 0.7 s does not.
    clip = read_video(clip_of(PLAIN, folder), FRAMES, start=0.5, end=0.7)
    assert [frame_number(frame) for frame in clip.frames] == [15, 16, 17, 18, 19, 20]
    assert clip.sample_fps == pytest.approx(6 / 0.2)
    # Gaps of 4, 1, 9, 2, 4 ticks of 1/120 s: frames 0 to 6 appear at 0, 4, 5, 14, 16, 20, 24 ticks. From 0.04 s
    # (4.8 ticks) to 0.2 s (24 ticks) these are frames 2 to 5; two frames per patch, so all four are taken.
    clip = read_video(clip_of(VARIABLE, folder), FRAMES, start=0.04, end=0.2)
    assert [frame_number(frame) for frame in clip.frames] == [2, 3, 4, 5]
    assert clip.sample_fps == pytest.approx(4 / 0.16)


def test_the_whole_video_as_a_stretch_is_the_video(folder: Path) -> None:
    path = clip_of(PLAIN, folder)
    whole = read_video(path, FRAMES)
    for end in (None, 3.5, 4.3):  # up to a second beyond the end
        stretch = read_video(path, FRAMES, start=0, end=end)
        assert torch.equal(stretch.frames, whole.frames)
        assert stretch.sample_fps == whole.sample_fps


def test_files_that_are_decoded_in_full_are_cut_too(folder: Path) -> None:
    path = clip_of(replace(PLAIN, name="without presentation times", suffix=".avi"), folder)
    clip = read_video(path, FRAMES, start=1, end=2)
    shown = range(30, 60)
    assert [frame_number(frame) for frame in clip.frames] == [shown[i] for i in frame_indices(30, FRAMES)]


@pytest.mark.parametrize("reader", ["decord", "torchcodec"])
def test_other_readers_cut_by_their_rate(reader: str, folder: Path) -> None:
    path = clip_of(PLAIN, folder)
    try:
        clip = read_video(path, FRAMES, reader, start=0.5, end=2.3)
    except ImportError as error:
        pytest.skip(str(error))
    exact = read_video(path, FRAMES, start=0.5, end=2.3)
    assert [frame_number(frame) for frame in clip.frames] == [frame_number(frame) for frame in exact.frames]
    assert clip.sample_fps == pytest.approx(exact.sample_fps)
    with pytest.raises(TimeRangeError, match=r"plain\.mp4: the range from 5 s to 6 s lies beyond .* lasts 3\.333 s"):
        read_video(path, FRAMES, reader, start=5, end=6)


def test_stretches_outside_the_video_are_refused(folder: Path) -> None:
    path = clip_of(PLAIN, folder)
    for start, end in ((3.4, None), (0, 4.4), (20, 30)):
        with pytest.raises(TimeRangeError, match=r"lies beyond the end of the video, which lasts 3\.333 s"):
            read_video(path, FRAMES, start=start, end=end)
    # Frame 3 appears at 0.1 s, frame 4 at 0.133 s: none between 0.101 and 0.102 s.
    with pytest.raises(
        TimeRangeError, match=r"no frame .*100 frames in 3\.333 s.* the range from 0\.101 s to 0\.102 s"
    ):
        probe_video(path, start=0.101, end=0.102)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (10**400, None, "start is 10{39}; it must be a number of seconds up to 1,000,000,000"),
        (0, float("nan"), "end is nan; it must be a number of seconds"),
        ("1", 2, "start is '1'; it must be a number of seconds"),
        (True, 2, "start is True"),
        (0, float("nan"), "end is nan"),
        (-1, 2, "start is -1 and end is 2; needed is 0 <= start < end"),
        (2, 2, "start is 2 and end is 2"),
        (None, 0, "start is None and end is 0"),
    ],
)
def test_what_is_no_range_is_refused(start: object, end: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_range(start, end)


def test_numbers_are_taken_as_written() -> None:
    times = time_range(0.1, None)
    assert times is not None
    assert times.start == Fraction(1, 10) < Fraction(0.1)
    assert time_range(None, None) is None


def written(folder: Path, **fields: object) -> Path:
    record = {"problem": "?", "data_type": "video", "problem_type": "multiple choice", "solution": "<answer>A</answer>"}
    file = folder / f"records {len(list(folder.glob('*.json')))}.json"
    file.write_text(json.dumps([{"problem_id": 7, "path": "./plain.mp4", **record, **fields}]))
    return file


def test_records_carry_their_times(folder: Path) -> None:
    path = clip_of(PLAIN, folder)
    record = RecordFile(written(folder, start=0.5, end=0.7), folder)[0]
    assert torch.equal(read_media(record, folder, FRAMES).frames, read_video(path, FRAMES, start=0.5, end=0.7).frames)
    unclipped = RecordFile(written(folder, start=None, end=None), folder)[0]
    assert torch.equal(read_media(unclipped, folder, FRAMES).frames, read_video(path, FRAMES).frames)


@pytest.mark.parametrize(
    ("times", "error", "message", "kind"),
    [
        ({"start": 4, "end": 9.5}, TimeRangeError, r"plain\.mp4: .*lasts 3\.333 s", "start or end beyond the video"),
        ({"start": "0:04"}, ValueError, "start is '0:04'; it must be a number", "start or end is no time"),
        ({"start": 2, "end": 1}, ValueError, "needed is 0 <= start < end", "start or end is no time"),
    ],
)
@pytest.mark.parametrize("decode", [True, False])
def test_wrong_times_name_the_record_and_are_findings(
    times: dict, error: type[Exception], message: str, kind: str, decode: bool, folder: Path
) -> None:
    clip_of(PLAIN, folder)
    file = written(folder, **times)
    with pytest.raises(error, match=rf"records \d+\.json:1 \(problem_id 7\): .*{message}") as caught:
        read_media(RecordFile(file, folder)[0], folder, FRAMES)
    assert isinstance(caught.value, VideoReadError) == (error is TimeRangeError)
    (finding,) = check_data(scan(file), MediaCheck(data_root=folder, config=FRAMES, decode=decode)).problems
    assert (finding.kind, finding.where) == (kind, f"{file}:1 (problem_id 7)")


@pytest.mark.parametrize("decode", [True, False])
def test_the_check_counts_the_tokens_of_the_stretch(decode: bool, folder: Path) -> None:
    clip_of(PLAIN, folder)
    check_media = MediaCheck(data_root=folder, config=FRAMES, decode=decode)
    report = check_data(scan(written(folder, start=0.5, end=0.7)), check_media)
    # Six frames: three temporal patches of 64 / 28 -> 2 by 96 / 28 -> 3 tokens.
    assert [size.vision for size in report.sizes] == [3 * 2 * 3]
