"""Quarantine: what takes a bad record's place, what is written, and when it is too much."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from datamodules import video_datamodule
from datamodules.bad_media import BadMediaLog, BadRecordError, substitutes
from datamodules.encoding import PromptEncoder
from datamodules.records import RecordFile
from datamodules.sampler import ResumableSampler
from datamodules.types import BadRecord
from datamodules.video.types import MediaConfig, ReaderStartError
from datamodules.video_datamodule import EncodedRecords, VideoDataModule
from rewards.errors import UserError
from tests.conftest import SMALL_PROFILE


@pytest.fixture
def spoiled(mixed_data: Path, tmp_path: Path) -> RecordFile:
    """The mixed data, in which the media of records 0 and 1 (a video and an image) are no media."""
    rows = [json.loads(line) for line in mixed_data.read_text().splitlines()]
    for row in rows[:2]:
        row["path"] = "spoiled.bin"
    for row in rows[2:]:
        if row.get("path"):
            (tmp_path / row["path"]).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / row["path"]).symlink_to(mixed_data.parent / row["path"])
    (tmp_path / "spoiled.bin").write_text("nothing")
    for link in tmp_path.rglob("*"):
        if link.is_symlink():
            content = link.read_bytes()
            link.unlink()
            link.write_bytes(content)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordFile(tmp_path / "data.jsonl", tmp_path)


def encoded(records: RecordFile, encoder: PromptEncoder, on_bad_media: str = "quarantine") -> EncodedRecords:
    return EncodedRecords(
        records=records,
        encoder=encoder,
        config=SMALL_PROFILE,
        reader="pyav",
        media=MediaConfig(),
        with_targets=False,
        on_bad_media=on_bad_media,
    )


def test_a_substitute_is_of_the_same_type_and_always_the_same(spoiled: RecordFile, encoder: PromptEncoder) -> None:
    first = [encoded(spoiled, encoder)[index] for index in range(len(spoiled))]
    again = [encoded(spoiled, encoder)[index] for index in reversed(range(len(spoiled)))][::-1]
    assert [prompt.record.problem_id for prompt in first] == [prompt.record.problem_id for prompt in again]
    for index, prompt in enumerate(first):
        assert prompt.record.data_type == spoiled[index].data_type
        if index > 1:
            assert (prompt.record, prompt.replaces) == (spoiled[index], ())
            continue
        assert prompt.record.problem_id not in ("0", "1")
        assert [(bad.line, bad.path) for bad in prompt.replaces] == [(index + 1, "spoiled.bin")]
        assert "cannot be" in prompt.replaces[0].reason


def test_raise_names_the_record(spoiled: RecordFile, encoder: PromptEncoder) -> None:
    with pytest.raises(BadRecordError, match=r"data\.jsonl:1 \(problem_id 0\): .*spoiled\.bin: it cannot be opened"):
        encoded(spoiled, encoder, "raise")[0]
    assert issubclass(BadRecordError, UserError)


def test_whatever_reading_raises_is_the_records(
    spoiled: RecordFile, encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file and of a text, but not of the environment: that would fail every record."""
    raised: Exception = RuntimeError("what libraries raise")

    def read_media(record, *_: object, **__: object):
        calls.append(record.problem_id)
        if record.problem_id == "0":
            raise raised
        return original(record, *_, **__)

    calls: list[str] = []
    original = video_datamodule.read_media
    monkeypatch.setattr(video_datamodule, "read_media", read_media)
    data = encoded(spoiled, encoder)
    assert data[0].replaces[0].reason == "RuntimeError: what libraries raise"
    assert data[0].replaces[0].reason == "RuntimeError: what libraries raise"
    assert calls.count("0") == 1  # known since
    with pytest.raises(RuntimeError, match="what libraries raise") as caught:
        encoded(spoiled, encoder, "raise")[0]
    assert caught.value.__notes__ == [f"The record: {spoiled[0].where}"]
    for raised in (ImportError("no decord"), ReaderStartError("no process")):
        with pytest.raises(type(raised)):
            encoded(spoiled, encoder)[0]


def test_no_substitute_is_an_error(spoiled: RecordFile, encoder: PromptEncoder, tmp_path: Path) -> None:
    lines = (tmp_path / "data.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(f"{lines[0]}\n{lines[1]}\n")
    with pytest.raises(BadRecordError, match=r"No other video record can take its place: 0 were tried"):
        encoded(RecordFile(tmp_path / "one.jsonl", tmp_path), encoder)[0]


def test_substitutes_are_all_others_of_the_type() -> None:
    records = [SimpleNamespace(data_type="image" if number % 3 else "video") for number in range(12)]
    assert sorted(substitutes(records, 3)) == [0, 6, 9]
    assert list(substitutes(records[:1], 0)) == []
    assert sorted(substitutes(records, 4)) == [1, 2, 5, 7, 8, 10, 11]


def bad(line: int, reason: str = "broken") -> BadRecord:
    return BadRecord(file="data.jsonl", line=line, problem_id=str(line), path="a.mp4", reason=reason)


def test_the_list_holds_each_record_once_over_ranks_and_starts(tmp_path: Path) -> None:
    file = tmp_path / "run" / "bad_media.jsonl"

    def start() -> BadMediaLog:
        return BadMediaLog(file=file, num_records=1000, max_fraction=0.5)

    first, second = start(), start()
    assert (first.grown(), first.grown()) == (0, None)
    first.note(7, [bad(3)])
    second.note(8, [])
    second.note(7, [bad(5)])
    second.note(7, [bad(5)])
    assert first.grown() == 2
    with file.open("a") as lines:
        lines.write('{"file": "cut of')  # a start that was killed while it wrote
    resumed = start()
    resumed.note(6, [bad(3), bad(5)])
    rows = [json.loads(line) for line in file.read_text().splitlines()[:2]]
    assert [(row["line"], row["reason"], row["path"]) for row in rows] == [
        (3, "broken", "a.mp4"),
        (5, "broken", "a.mp4"),
    ]
    assert file.read_text().count("\n") == 2


def test_too_many_bad_records_end_the_run_with_one_error(tmp_path: Path) -> None:
    log = BadMediaLog(file=tmp_path / "bad.jsonl", num_records=10_000, max_fraction=0.05)
    for line in range(10):  # 10 of 40 drawn, but a twentieth of the first 200 is 10
        log.note(3, [bad(line)])
    with pytest.raises(
        UserError, match=r"^11 of the 44 records .* more than data\.init_args\.max_bad_fraction 0\.05.*"
    ):
        log.note(3, [bad(10, "the last reason")])
    small = BadMediaLog(file=None, num_records=12, max_fraction=0.1)  # a tenth of 12 is 1.2
    small.note(3, [bad(1)])
    with pytest.raises(UserError, match="the last reason"):
        small.note(3, [bad(2, "the last reason")])
    long = BadMediaLog(file=None, num_records=10_000, max_fraction=0.05)
    for line in range(400):  # one in twenty-five is 4 %
        long.note(24, [bad(line)])


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_the_limit_is_a_fraction(fraction: float) -> None:
    with pytest.raises(UserError, match=f"max_bad_fraction is {fraction}"):
        VideoDataModule("model", max_bad_fraction=fraction)


def test_records_that_were_taken_out_do_not_refuse_the_resume(caplog: pytest.LogCaptureFixture) -> None:
    before = ResumableSampler(100, batch_size=4, seed=1)
    state = before.state_dict(epoch=0, batches=10)
    after = ResumableSampler(97, batch_size=4, seed=1)
    with pytest.raises(ValueError, match="num_records 100, this run has 97"):
        after.load_state_dict(state, may_lack=2)
    with caplog.at_level(logging.WARNING):
        after.load_state_dict(state, may_lack=3)
    assert "97 records, 3 fewer than in the checkpoint" in caplog.text
    assert len(list(after)) == 56  # 97 - 40 trained on = 57, in whole batches
    with pytest.raises(ValueError, match="num_records"):
        ResumableSampler(101, batch_size=4, seed=1).load_state_dict(state, may_lack=3)
