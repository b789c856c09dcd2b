"""Scenes of flashing shapes, drawn frame by frame and encoded as real H.264 files.

Shapes: F frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Shape = Literal["square", "circle"]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 30, 30),
    "green": (30, 200, 30),
    "blue": (40, 60, 240),
    "yellow": (240, 230, 30),
    "white": (245, 245, 245),
    "purple": (160, 40, 200),
}
SIZE = 56
FRAMES = 16
FRAMES_PER_SECOND = 8


@dataclass(frozen=True, kw_only=True)
class Flash:
    """One shape that stands still while it is visible. Lengths are fractions of the picture's shorter side."""

    start: int
    """First frame in which the shape is visible."""
    stop: int
    """First frame in which it is gone."""
    color: str
    """A key of `COLORS`."""
    shape: Shape
    center: tuple[float, float]
    """x as a fraction of the width, y of the height."""
    radius: float
    """Radius of a circle, half the side of a square."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that a clip shows."""

    background: tuple[int, int, int]
    """RGB, 0..255."""
    flashes: tuple[Flash, ...]
    frames: int = FRAMES
    height: int = SIZE
    width: int = SIZE


def render(scene: Scene) -> np.ndarray:
    """Draw a scene; a pure function of it.

    Returns:
        uint8 [F, H, W, 3], RGB.
    """
    frames = np.empty((scene.frames, scene.height, scene.width, 3), np.uint8)
    frames[:] = scene.background
    y, x = np.ogrid[: scene.height, : scene.width]
    for flash in scene.flashes:
        radius = flash.radius * min(scene.height, scene.width)
        dx, dy = x - flash.center[0] * scene.width, y - flash.center[1] * scene.height
        inside = np.maximum(abs(dx), abs(dy)) <= radius if flash.shape == "square" else dx**2 + dy**2 <= radius**2
        frames[flash.start : flash.stop, inside] = COLORS[flash.color]
    return frames


def write_clip(path: Path, frames: np.ndarray, *, fps: int = FRAMES_PER_SECOND) -> None:
    """Encode frames, uint8 [F, H, W, 3] with even H and W, as an H.264 mp4 file (yuv420p, nearly lossless)."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "12", "preset": "ultrafast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
