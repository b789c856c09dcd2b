"""Video readers side by side: are their frames the right ones, and what do they cost?

    python tests/performance/video_reader.py [--cache FOLDER] [--repeats 5] [--cases NAME ...]

Each reader does the same: `read_video` with the frames of training (count the frames, choose 16, decode them to RGB,
resize them), one decoder thread, one torch thread, one process. Readers take turns within each repeat, and medians are
compared. `seconds` is process CPU time, which other work on the machine disturbs least; wall time stands beside it.

Frames are checked against a full sequential decode. A frame is wrong when it carries another number than the true one;
color conversion may differ between FFmpeg builds. PyAV also makes the full decode, so all its pixels must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datamodules.video.frame_sampling import TRAIN, frame_indices
from datamodules.video.types import VideoClip, VideoReadError
from datamodules.video.video_reader import READERS, read_video, resize
from tests.performance.video_cases import VideoCase, count_frames, frame_number, full_decode, write_case

RESULTS = Path(__file__).parent / "results" / "video_reader.json"
CASES = (
    VideoCase(name="10 s 720p", width=1280, height=720, frames=300),
    VideoCase(name="10 s 720p, no B-frames", width=1280, height=720, frames=300, b_frames=0),
    VideoCase(name="60 s 1080p", width=1920, height=1080, frames=1800, gop=250),
    VideoCase(name="10 min 480p, 8 s GOPs", width=854, height=480, frames=15000, fps=25, gop=200),
    VideoCase(name="open GOP", width=1280, height=720, frames=600, gop=30, open_gop=True),
    VideoCase(name="edit list", width=1280, height=720, frames=300, trimmed=72),
    VideoCase(name="VFR", width=1280, height=720, frames=300, variable_rate=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder that keeps the generated files (about 150 MB)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for case in chosen for row in measure(case, folder, arguments.repeats)]
    print_table(rows)
    report = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "timing": f"medians of {arguments.repeats} interleaved repeats; seconds and ratio: process CPU time, 1 thread",
        "rows": [{key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in rows],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def measure(case: VideoCase, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """One row per reader for `case`."""
    path = case.path(folder)
    if not path.exists():
        print(f"encoding {path.name} ...", file=sys.stderr)
        write_case(case, folder)
    rows = {reader: {"case": case.name, "reader": reader} for reader in READERS}
    clips: dict[str, VideoClip] = {}
    for reader, row in rows.items():
        try:
            clips[reader] = read_video(path, TRAIN, reader)
        except (ImportError, VideoReadError, RuntimeError) as error:
            row["unavailable"] = str(error).strip().splitlines()[0][:300]
    times: dict[str, list[tuple[float, float]]] = {reader: [] for reader in clips}
    for _ in range(repeats):
        for reader in clips:
            times[reader].append(clock(path, reader))
    check(path, clips, rows)
    for reader, measured in times.items():
        cpu, wall = zip(*measured, strict=True)
        rows[reader] |= {"seconds": statistics.median(cpu), "wall_seconds": statistics.median(wall)}
    fastest = min(rows[reader]["seconds"] for reader in clips)
    for reader in clips:
        rows[reader]["ratio_to_fastest"] = rows[reader]["seconds"] / fastest
    return list(rows.values())


def clock(path: Path, reader: str) -> tuple[float, float]:
    """CPU and wall seconds of one reading."""
    cpu, wall = time.process_time(), time.perf_counter()
    read_video(path, TRAIN, reader)
    return time.process_time() - cpu, time.perf_counter() - wall


def check(path: Path, clips: Mapping[str, VideoClip], rows: Mapping[str, dict[str, Any]]) -> None:
    """Compare every reader's frames with those of a full decode."""
    indices = frame_indices(count_frames(path), TRAIN)
    truth = list(full_decode(path, set(indices)))
    expected = [frame_number(frame) for frame in truth]
    for reader, clip in clips.items():
        numbers = [frame_number(frame) for frame in clip.frames]
        wrong = sum(a != b for a, b in zip(expected, numbers, strict=True))
        rows[reader] |= {"exact": wrong == 0, "wrong_frames": wrong}
    height, width = clips["pyav"].frames.shape[-2:]
    same = torch.equal(clips["pyav"].frames, torch.stack([resize(frame, height, width) for frame in truth]))
    rows["pyav"] |= {"exact": rows["pyav"]["exact"] and same, "same_pixels": same}


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    print("| case | reader | exact | wrong frames | CPU s | wall s | ratio to fastest (CPU) |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        start = f"| {row['case']} | {row['reader']} |"
        if "unavailable" in row:
            print(f"{start} unavailable: {row['unavailable']} | | | | |")
        else:
            numbers = f"{row['seconds']:.3f} | {row['wall_seconds']:.3f} | {row['ratio_to_fastest']:.2f} |"
            print(f"{start} {'yes' if row['exact'] else 'no'} | {row['wrong_frames']} | {numbers}")


def machine() -> str:
    """Processor, cores and library versions."""
    from importlib.metadata import PackageNotFoundError, version

    versions = []
    for package in ("av", "decord", "torchcodec", "torch", "torchvision"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores; {', '.join(versions)}"


if __name__ == "__main__":
    main()
