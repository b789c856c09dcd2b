"""How much damage to videos is noticed: clips damaged at random, read strictly and not.

    python tests/performance/media_damage.py [--clips 1800] [--seed 0]

A clip is damaged by one bit, ten bits, 50 to 600 bytes of zeros, or its end is cut off. "wrong" are frames that differ
from those of the sound clip and come without an error.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datamodules.video.frame_sampling import FrameConfig
from datamodules.video.types import MediaConfig, VideoReadError
from datamodules.video.video_reader import read_video
from tests.performance.video_cases import VideoCase, write_case

FRAMES = FrameConfig(num_frames=16, min_pixels=28 * 28, max_pixels=128 * 128)
CODECS = {
    "h264.mp4": "libx264",
    "h264.mkv": "libx264",
    "h264.ts": "libx264",
    "hevc.mp4": "libx265",
    "vp9.webm": "libvpx-vp9",
    "av1.mkv": "libsvtav1",
    "mpeg4.avi": "mpeg4",
    "mpeg2.ts": "mpeg2video",
}


def flip(bits: int) -> Callable[[bytearray, random.Random], None]:
    def damage(data: bytearray, draw: random.Random) -> None:
        for _ in range(bits):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)

    return damage


def clear(data: bytearray, draw: random.Random) -> None:
    start, size = draw.randrange(len(data)), draw.randint(50, 600)
    data[start : start + size] = bytes(len(data[start : start + size]))


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data) // 10, len(data)) :]


DAMAGE = {"one bit": flip(1), "ten bits": flip(10), "zeros": clear, "cut off": cut}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    draw, counts = random.Random(arguments.seed), Counter()
    with tempfile.TemporaryDirectory() as temporary:
        sound = {name: write(Path(temporary), name) for name in CODECS}
        truth = {name: read_video(path, FRAMES).frames for name, path in sound.items()}
        for number in range(arguments.clips):
            name = list(CODECS)[number % len(CODECS)]
            kind = list(DAMAGE)[number // len(CODECS) % len(DAMAGE)]
            data = bytearray(sound[name].read_bytes())
            DAMAGE[kind](data, draw)
            damaged = Path(temporary) / f"damaged.{name}"
            damaged.write_bytes(data)
            for strict in (False, True):
                result = outcome(damaged, truth[name], strict)
                counts[name, strict, result] += 1
                counts[kind, strict, result] += 1
    for title, names in (("format", CODECS), ("damage", DAMAGE)):
        print(
            f"| {title} | named | as sound | wrong | strict: named | as sound | wrong |\n|---|---|---|---|---|---|---|"
        )
        for name in (*names, "all"):
            of = names if name == "all" else [name]
            cells = [
                sum(counts[each, strict, result] for each in of)
                for strict in (False, True)
                for result in ("named", "as sound", "wrong")
            ]
            print(f"| {name} | " + " | ".join(map(str, cells)) + " |")
        print()


def write(folder: Path, name: str) -> Path:
    stem, suffix = name.split(".")
    codec = CODECS[name]
    return write_case(
        VideoCase(name=stem, width=320, height=240, frames=60, gop=20, codec=codec, suffix=f".{suffix}"), folder
    )


def outcome(path: Path, truth: torch.Tensor, strict: bool) -> str:
    try:
        frames = read_video(path, FRAMES, media=MediaConfig(strict_decoding=strict)).frames
    except VideoReadError:
        return "named"
    return "as sound" if frames.shape == truth.shape and torch.equal(frames, truth) else "wrong"


if __name__ == "__main__":
    main()
