"""Decoded clips on disk: the same frames, never those of another file or setting, whole, bounded, shared."""

from __future__ import annotations

import logging
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.media import read_media
from datamodules.records import RecordFile
from datamodules.types import VideoRecord
from datamodules.video import video_reader
from datamodules.video.clip_cache import ClipCache, ClipCacheConfig
from datamodules.video.types import MediaConfig, MediaPathError, VideoClip
from datamodules.video_datamodule import VideoDataModule
from rewards.errors import UserError
from tests.conftest import DEMO_TEMPLATE, SMALL_PROFILE

MEDIA = MediaConfig(timeout=None)


@pytest.fixture
def records(mixed_data: Path, tmp_path: Path) -> RecordFile:
    """The mixed data with media files of its own."""
    for record in RecordFile(mixed_data, mixed_data.parent):
        if record.path is not None and not (tmp_path / record.path).exists():
            (tmp_path / record.path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / record.path).write_bytes((mixed_data.parent / record.path).read_bytes())
    (tmp_path / "data.jsonl").write_bytes(mixed_data.read_bytes())
    return RecordFile(tmp_path / "data.jsonl", tmp_path)


@pytest.fixture
def video(records: RecordFile) -> VideoRecord:
    return next(record for record in records if record.data_type == "video")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "clips"


def cache_in(folder: Path, max_gigabytes: float = 1.0) -> ClipCache:
    return ClipCache(ClipCacheConfig(folder=str(folder), max_gigabytes=max_gigabytes))


def read(cache: ClipCache, record: VideoRecord, config=SMALL_PROFILE, media=MEDIA, reader="pyav") -> VideoClip | None:
    return read_media(record, record.file.parent, config, reader=reader, media=media, cache=cache)


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(left: VideoClip | None, right: VideoClip | None) -> bool:
    if left is None or right is None:
        return left is right
    shared = torch.equal(left.frames, right.frames) and left.frames.dtype == right.frames.dtype
    return shared and (left.sample_fps, left.is_video) == (right.sample_fps, right.is_video)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files that were decoded, as they are."""
    seen: list[str] = []
    decode = video_reader._clip

    def counting(request):
        seen.append(request.path)
        return decode(request)

    monkeypatch.setattr(video_reader, "_clip", counting)
    return seen


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_every_kind_of_record_is_decoded_once_and_read_back_bit_for_bit(records, folder, decoded, timeout):
    media = MediaConfig(timeout=timeout)
    direct = [read_media(record, records.data_root, SMALL_PROFILE, media=media) for record in records]
    decoded.clear()
    for cache in (cache_in(folder), cache_in(folder)):  # the second one as in a later run
        clips = [read(cache, record, media=media) for record in records]
        assert all(same(*pair) for pair in zip(clips, direct, strict=True))
        for clip in filter(None, clips):
            clip.frames.fill_(0)  # a clip belongs to who read it
    paths = {(record.path, record.data_type) for record in records if record.path is not None}
    assert len(entries(folder)) == len(paths)
    assert len(decoded) == len(paths)


@pytest.mark.parametrize(
    "change",
    [
        {"config": replace(SMALL_PROFILE, num_frames=2)},
        {"config": replace(SMALL_PROFILE, max_pixels=28 * 28)},
        {"media": MediaConfig(timeout=None, strict_decoding=False)},
        {"media": MediaConfig(timeout=None, max_pixels=2**20)},
        {"extra": {"end": 0.5}},
        {"reader": "decord"},
    ],
    ids=str,
)
def test_another_setting_is_another_entry(video, folder, decoded, change):
    cache = cache_in(folder)
    read(cache, video)
    other = replace(video, extra=change.pop("extra", video.extra))
    clip = read(cache, other, **change)
    assert len(decoded) == 2 and same(clip, read(cache, other, **change)) and len(decoded) == 2


def test_a_file_that_was_written_again_is_another_entry_even_at_the_same_size_and_time(video, folder, decoded):
    cache, path = cache_in(folder), video.file.parent / video.path
    first, before = read(cache, video), path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert same(read(cache, video), first) and len(decoded) == 2


def test_a_file_that_is_gone_is_an_error_and_no_clip(video, folder):
    cache = cache_in(folder)
    read(cache, video)
    (video.file.parent / video.path).unlink()
    with pytest.raises(MediaPathError, match=rf"{video.problem_id}\).*does not exist"):
        read(cache, video)


@pytest.mark.parametrize("damage", ["empty", "header", "cut", "longer", "flipped", "image"])
def test_a_damaged_entry_is_named_and_written_anew(video, folder, decoded, damage, caplog):
    first = read(cache_in(folder), video)
    (entry,) = entries(folder)
    sound = entry.read_bytes()
    flipped = sound[:-1] + bytes([sound[-1] ^ 1])
    image = sound.replace(b'"is_video": true', b'"is_video": null', 1)
    broken = {
        "empty": b"",
        "header": b"{}\n",
        "cut": sound[:-1],
        "longer": sound + b"x",
        "flipped": flipped,
        "image": image,
    }
    assert broken[damage] != sound
    entry.write_bytes(broken[damage])
    with caplog.at_level(logging.WARNING):
        assert same(read(cache_in(folder), video), first)
    assert str(entry) in caplog.text and len(decoded) == 2
    assert entries(folder) == [entry] and entry.read_bytes() == sound


def test_a_full_folder_takes_no_more_and_says_so_once(records, folder, caplog):
    one = read_media(next(record for record in records if record.path), records.data_root, SMALL_PROFILE, media=MEDIA)
    limit = 3.5 * one.frames.nbytes
    cache = cache_in(folder, max_gigabytes=limit / 1e9)
    with caplog.at_level(logging.WARNING):
        clips = [read(cache, record) for record in records]
    direct = [read_media(record, records.data_root, SMALL_PROFILE, media=MEDIA) for record in records]
    assert all(same(*pair) for pair in zip(clips, direct, strict=True))
    assert 0 < sum(path.stat().st_size for path in entries(folder)) <= limit + 4096
    assert caplog.text.count("max_gigabytes") == 1


def test_a_disk_without_room_costs_the_cache_and_not_the_run(video, folder, monkeypatch, caplog):
    def no_room(*arguments, **options):
        raise OSError(28, "No space left on device")

    cache = cache_in(folder)
    monkeypatch.setattr(Path, "replace", no_room)
    with caplog.at_level(logging.WARNING):
        assert read(cache, video) is not None and read(cache, video) is not None
    assert entries(folder) == [] and caplog.text.count("No space left") == 1


def test_what_a_killed_program_left_is_removed(video, folder):
    stale, fresh = folder / "ab" / "x.partial", folder / "ab" / "y.partial"
    fresh.parent.mkdir(parents=True)
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    read(cache_in(folder), video)
    assert not stale.exists() and fresh.exists()


def _read_all(data: Path, folder: Path, barrier) -> None:
    torch.set_num_threads(1)
    cache, records = cache_in(folder), RecordFile(data, data.parent)
    barrier.wait()
    for record in records:
        clip = read(cache, record)
        assert same(clip, read_media(record, data.parent, SMALL_PROFILE, media=MEDIA))


def test_processes_that_fill_it_together_leave_whole_entries(records, folder):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_read_all, args=(records.path, folder, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    paths = {(record.path, record.data_type) for record in records if record.path is not None}
    assert len(entries(folder)) == len(paths)


def test_batches_are_the_same_with_a_cache_filled_or_not(records, folder, tiny_folder):
    def batches(cache: ClipCacheConfig | None):
        data = VideoDataModule(
            str(tiny_folder),
            data_root=str(records.data_root),
            train_files=[str(records.path)],
            prompt=DEMO_TEMPLATE,
            train_frames=SMALL_PROFILE,
            eval_frames=SMALL_PROFILE,
            clip_cache=cache,
            batch_size=3,
            num_workers=2,
        )
        data.trainer = SimpleNamespace(global_rank=0, world_size=1)
        data.setup("fit")
        return list(data.train_dataloader())

    config = ClipCacheConfig(folder=str(folder))
    without, filling, filled = batches(None), batches(config), batches(config)
    assert entries(folder)
    for plain, *others in zip(without, filling, filled, strict=True):
        for other in others:
            assert torch.equal(plain.input_ids, other.input_ids)
            assert (plain.vision is None) == (other.vision is None)
            if plain.vision is not None:
                assert all(
                    torch.equal(value, getattr(other.vision, name)) for name, value in vars(plain.vision).items()
                )


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(UserError, match="max_gigabytes is 0"):
        ClipCacheConfig(folder="clips", max_gigabytes=0)
