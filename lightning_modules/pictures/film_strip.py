"""Frames of a clip side by side, for people.

Shapes: F frames.
"""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rewards.errors import UserError

FILM, STAMP = "#16181d", "#d6d9df"
GAP, BAND, MAX_HEIGHT = 6, 22, 260
MAX_FRAMES = 8


def film_strip(frames: Tensor, *, width: int = 960, seconds_per_frame: float | None = None) -> Image.Image:
    """At most `MAX_FRAMES` evenly chosen frames in rows, first and last included, each above its time.

    Small frames are enlarged without smoothing (the model sees those pixels), large ones are reduced.

    Args:
        frames: uint8 [F, 3, H, W].
        width: of the picture, in pixels.
        seconds_per_frame: time from one frame to the next; None numbers the frames instead.

    Raises:
        UserError: `frames` is not uint8 [F, 3, H, W] with F >= 1.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or frames.numel() == 0:
        raise UserError(f"film_strip takes uint8 frames [F, 3, H, W], F >= 1; got {frames.dtype} {list(frames.shape)}.")
    total, _, high, wide = frames.shape
    shown = min(total, MAX_FRAMES)
    chosen = [round(i * (total - 1) / max(shown - 1, 1)) for i in range(shown)]
    # Wide frames would be slits in a row of eight.
    columns = min(shown, 4 if wide > 1.2 * high else 8)
    scale = min(((width - GAP) // columns - GAP) / wide, MAX_HEIGHT / high)
    tile = (max(round(wide * scale), 1), max(round(high * scale), 1))
    across, down = tile[0] + GAP, tile[1] + BAND

    strip = Image.new("RGB", (width, -(-shown // columns) * down + GAP), FILM)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=14)
    left = (width - columns * across + GAP) // 2
    for place, index in enumerate(chosen):
        x, y = left + place % columns * across, GAP + place // columns * down
        strip.paste(_tile(frames[index], tile), (x, y))
        if total > 1:
            stamp = f"frame {index + 1}" if seconds_per_frame is None else f"{index * seconds_per_frame:.2f} s"
            draw.text((x + tile[0] / 2, y + tile[1] + (BAND - GAP) / 2), stamp, STAMP, font, anchor="mm")
    return strip


def _tile(frame: Tensor, size: tuple[int, int]) -> Image.Image:
    """One frame [3, H, W] at `size` (width, height)."""
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy())
    factor = -(-size[0] // image.width)
    if factor == 1:
        return image.resize(size, Image.Resampling.LANCZOS)
    # A whole multiple first: nearest-neighbor by a fraction would make some pixels wider than others.
    enlarged = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return enlarged.resize(size, Image.Resampling.BOX)
