"""The process that decodes: killed when a file stalls, replaced when it dies, gone when its parent is."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.video import reader_process
from datamodules.video.types import MediaConfig, ReaderStartError, VideoReadError
from datamodules.video.video_reader import probe_video, read_image, read_video
from tests.datamodules.bad_files import bad_images, bad_videos
from tests.datamodules.media_corpus import FRAMES, h264
from tests.datamodules.sound_images import PLAIN, saved

IN_PROCESS = MediaConfig(timeout=None)
PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    h264()(path)
    return path


@contextmanager
def stalled(path: Path) -> Iterator[None]:
    """Whoever opens the file waits, as for a server that does not answer: a lease holds it (45 s at most)."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(path, os.O_RDWR)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


def children() -> list[int]:
    """Processes that this one started and that still run."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def own_reader() -> int:
    return reader_process._local.process._process.pid


def test_the_process_imports_no_torch() -> None:
    """It would need ten times the memory and the time to start."""
    code = "import sys, datamodules.video.reader_server; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_both_ways_give_the_same(clip: Path, tmp_path: Path) -> None:
    assert torch.equal(read_video(clip, FRAMES).frames, read_video(clip, FRAMES, media=IN_PROCESS).frames)
    assert probe_video(clip) == probe_video(clip, media=IN_PROCESS)
    saved(PLAIN)(tmp_path / "image.png")
    ours = read_image(tmp_path / "image.png", FRAMES, media=IN_PROCESS)
    assert torch.equal(read_image(tmp_path / "image.png", FRAMES).frames, ours.frames)


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_a_stalled_file_costs_its_time_limit_and_no_more(reader: str, clip: Path, tmp_path: Path) -> None:
    pytest.importorskip({"pyav": "av"}.get(reader, reader))
    bad = tmp_path / "stalled.mp4"
    bad.write_bytes(clip.read_bytes())
    read_video(clip, FRAMES, reader)
    before, began = own_reader(), time.monotonic()
    with (
        stalled(bad),
        pytest.raises(VideoReadError, match=r"stalled\.mp4: it was not read within media\.timeout 0\.5 s"),
    ):
        read_video(bad, FRAMES, reader, media=MediaConfig(timeout=0.5))
    assert 0.5 <= time.monotonic() - began < 10
    assert before not in children()
    assert read_video(bad, FRAMES, reader).frames.shape == read_video(clip, FRAMES, reader).frames.shape


def test_a_process_that_dies_of_a_file_is_that_files_error(clip: Path, tmp_path: Path) -> None:
    bad = tmp_path / "deadly.mp4"
    bad.write_bytes(clip.read_bytes())
    read_video(clip, FRAMES)
    killer = threading.Timer(0.5, os.kill, (own_reader(), signal.SIGSEGV))
    with (
        stalled(bad),
        pytest.raises(VideoReadError, match=r"deadly\.mp4: the process that read it ended with status -11"),
    ):
        killer.start()
        read_video(bad, FRAMES)
    assert torch.equal(read_video(bad, FRAMES).frames, read_video(clip, FRAMES).frames)


def test_a_process_that_died_between_two_files_blames_neither(clip: Path) -> None:
    read_video(clip, FRAMES)
    before = own_reader()
    os.kill(before, signal.SIGKILL)
    while Path(f"/proc/{before}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    assert len(read_video(clip, FRAMES).frames) == 4
    assert own_reader() != before


def test_a_process_that_does_not_start_blames_no_file(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_process.sys, "executable", "/bin/false")
    monkeypatch.setattr(reader_process._local, "process", None, raising=False)
    with pytest.raises(ReaderStartError, match="The reader process did not start"):
        read_video(clip, FRAMES)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(0)", "sys.exit()"])
def test_no_process_outlives_its_parent(end: str, clip: Path) -> None:
    script = (
        "import os, sys; from datamodules.video.video_reader import read_video\n"
        "from datamodules.video import reader_process\n"
        "from tests.datamodules.media_corpus import FRAMES\n"
        f"read_video({str(clip)!r}, FRAMES); print(reader_process._local.process._process.pid, flush=True); {end}"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True)
    reader = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 10
    while reader.exists() and reader.joinpath("stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def frames_of(path: str) -> torch.Tensor:
    return read_video(path, FRAMES).frames


def test_loader_workers_have_readers_of_their_own(clip: Path) -> None:
    ours = frames_of(str(clip))  # the workers are forked from a process that has a reader
    before = own_reader()
    loader = DataLoader([str(clip)] * 8, batch_size=None, num_workers=2, collate_fn=frames_of)
    assert all(torch.equal(frames, ours) for frames in loader)
    assert torch.equal(frames_of(str(clip)), ours)
    assert own_reader() == before


def test_nothing_leaks_over_300_clips(clip: Path, tmp_path: Path) -> None:
    """Good files, bad ones of every kind, and files that run into the limit."""
    bad = [*bad_videos(), *bad_images()]
    for kind in bad:
        kind.write(tmp_path / kind.file)
    slow = tmp_path / "slow.mp4"
    slow.write_bytes(clip.read_bytes())

    def read(number: int) -> None:
        kind = bad[number % len(bad)]
        read_video(clip, FRAMES)
        if number % 3 == 1:
            with pytest.raises(VideoReadError):
                (read_video if kind.data_type == "video" else read_image)(tmp_path / kind.file, FRAMES)
        elif number % 50 == 0:
            with stalled(slow), pytest.raises(VideoReadError, match="timeout"):
                read_video(slow, FRAMES, media=MediaConfig(timeout=0.05))

    def usage() -> tuple[int, int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(children()), threading.active_count()

    for number in range(100):
        read(number)
    memory, before = resident(os.getpid()) + resident(own_reader()), usage()
    for number in range(100, 300):
        read(number)
    read_video(clip, FRAMES)
    assert usage() == before
    assert resident(os.getpid()) + resident(own_reader()) - memory < 20 * 2**20


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
