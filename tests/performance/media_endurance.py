"""What reading in a process of its own costs, and whether 2,000 clips leave anything behind.

    python tests/performance/media_endurance.py [--clips 2000]

Cost: wall and CPU seconds per file (this process and the reader), in the loader's process and in one of its own, taken
in turns; medians. Endurance: good and damaged files in turn; memory, file descriptors, threads and children after each
quarter.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datamodules.video import reader_process
from datamodules.video.frame_sampling import TRAIN
from datamodules.video.types import MediaConfig, VideoReadError
from datamodules.video.video_reader import read_image, read_video
from tests.performance.video_cases import VideoCase, write_case

IN_PROCESS, ELSEWHERE = MediaConfig(timeout=None), MediaConfig()
REPEATS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measure_cost(folder)
        endure(folder, arguments.clips)


def measure_cost(folder: Path) -> None:
    clips = [
        VideoCase(name="2 s of 320 x 240", width=320, height=240, frames=60),
        VideoCase(name="10 s of 1280 x 720", width=1280, height=720, frames=300),
        VideoCase(name="10 s of 1920 x 1080", width=1920, height=1080, frames=300),
    ]
    files = {case.name: (write_case(case, folder), read_video) for case in clips}
    Image.effect_noise((1920, 1080), 50).convert("RGB").save(folder / "image.jpg")
    files["image of 1920 x 1080"] = (folder / "image.jpg", read_image)
    print("| file | in process: wall ms | CPU ms | process: wall ms | CPU ms |\n|---|---|---|---|---|")
    for name, (path, read) in files.items():
        times: dict[MediaConfig, list[tuple[float, float]]] = {IN_PROCESS: [], ELSEWHERE: []}
        for media in times:
            read(path, TRAIN, media=media)
        for _ in range(REPEATS):
            for media, measured in times.items():
                measured.append(clock(partial(read, path, TRAIN, media=media)))
        cells = [
            statistics.median(column) * 1000 for measured in times.values() for column in zip(*measured, strict=True)
        ]
        print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    print(f"reader process: {resident(reader()) / 2**20:.0f} MiB")


def clock(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, those of the reader included."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    fields = Path(f"/proc/{reader()}/schedstat").read_text().split() if reader() else ["0"]
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + int(fields[0]) / 1e9


def reader() -> int | None:
    process = getattr(reader_process._local, "process", None)
    return process._process.pid if process is not None else None


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def endure(folder: Path, clips: int) -> None:
    case = VideoCase(name="clip", width=320, height=240, frames=60, gop=20)
    sound = write_case(case, folder)
    data = bytearray(sound.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    (folder / "damaged.mp4").write_bytes(data)
    print("\n| clips | this process MiB | reader MiB | descriptors | threads | children |\n|---|---|---|---|---|---|")
    for number in range(1, clips + 1):
        if number % 4:
            read_video(sound, TRAIN)
        else:
            try:
                read_video(folder / "damaged.mp4", TRAIN)
            except VideoReadError:
                pass
            else:
                raise AssertionError("the damage was not noticed")
        if number in (50, clips // 4, clips // 2, 3 * clips // 4, clips):
            memory = [resident(pid) / 2**20 for pid in (os.getpid(), reader())]
            count = subprocess.run(
                ["pgrep", "-c", "-P", str(os.getpid())], capture_output=True, text=True
            ).stdout.strip()
            descriptors = len(list(Path("/proc/self/fd").iterdir()))
            cells = (number, *(f"{size:.0f}" for size in memory), descriptors, threading.active_count(), count)
            print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
