"""Records of every kind of media and problem, for tests of what must treat them all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.synthetic.dataset import mixed_record
from datamodules.synthetic.scene import COLORS, SIZE, Scene, render, write_clip


def write_mixed_dataset(output: Path, *, seed: int, count: int) -> Path:
    """Write `mixed.jsonl` with video, image and text-only records in turn, all with a chain of thought.

    Six records in a row hold all five problem types; media lie in `media/`.

    Returns:
        The record file; its folder is the data root.
    """
    (output / "media").mkdir(parents=True)
    rng, records = np.random.default_rng([seed, 4]), []
    for index in range(count):
        record, shown = mixed_record(rng, index)
        if shown is not None:
            _write_media(output / record["path"], shown)
        records.append(record)
    file = output / "mixed.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def _write_media(path: Path, shown: Scene | str) -> None:
    """Save a scene as a clip (.mp4) or its first frame as an image (any other suffix), or a text as an image."""
    if isinstance(shown, str):
        image = Image.new("RGB", (SIZE * 3 // 2, SIZE))
        font = ImageFont.load_default(size=32)
        ImageDraw.Draw(image).text((SIZE // 3, SIZE // 4), shown, fill=COLORS["white"], font=font)
        image.save(path)
    elif path.suffix == ".mp4":
        write_clip(path, render(shown))
    else:
        Image.fromarray(render(shown)[0]).save(path)
