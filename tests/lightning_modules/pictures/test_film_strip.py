"""The strip is checked where a wrong one would mislead: which frames it shows, how, and which times it names."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_modules.pictures.film_strip import film_strip


def gray_frames(count: int, height: int = 56, width: int = 56) -> Tensor:
    """Frame i is a plain gray of 10 * i."""
    levels = (10 * torch.arange(count)).to(torch.uint8)
    return levels.view(count, 1, 1, 1).expand(count, 3, height, width).contiguous()


def grays_from_left_to_right(strip: Image.Image) -> list[int]:
    """The grays that fill large parts of the picture, by the column in which they first appear."""
    pixels = np.asarray(strip)
    plain = (pixels == pixels[..., :1]).all(-1)
    columns = {}
    for gray, count in zip(*np.unique(pixels[plain][:, 0], return_counts=True), strict=True):
        if count > 5000:
            columns[int(gray)] = int(np.argwhere(plain & (pixels[..., 0] == gray))[:, 1].min())
    return sorted(columns, key=columns.get)


@pytest.fixture
def stamps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen = []
    text = ImageDraw.ImageDraw.text

    def recorded(draw, position, words, *args, **kwargs):
        seen.append(words)
        return text(draw, position, words, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recorded)
    return seen


def test_frames_are_evenly_chosen_and_stand_in_their_order():
    strip = film_strip(gray_frames(16), width=960)
    assert strip.width == 960
    # round(i * 15 / 7) for i = 0..7 is 0, 2, 4, 6, 9, 11, 13, 15; frame n is gray 10 * n.
    assert grays_from_left_to_right(strip) == [0, 20, 40, 60, 90, 110, 130, 150]


def test_enlarging_keeps_pixels_sharp():
    frame = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    frame[..., 1] = 200
    colors = {color for _, color in film_strip(frame).getcolors()}
    # The film itself and the two grays of the source, nothing in between.
    assert len(colors) == 3 and {(100,) * 3, (200,) * 3} < colors


def test_wide_frames_stand_in_two_rows():
    assert film_strip(gray_frames(8, 224, 420)).height > 1.8 * film_strip(gray_frames(4, 224, 420)).height


def test_stamps_are_seconds_or_frame_numbers(stamps: list[str]):
    film_strip(gray_frames(3), seconds_per_frame=1.25)
    assert stamps == ["0.00 s", "1.25 s", "2.50 s"]
    stamps.clear()
    film_strip(gray_frames(3))
    assert stamps == ["frame 1", "frame 2", "frame 3"]
    stamps.clear()
    film_strip(gray_frames(1), seconds_per_frame=1.25)
    assert stamps == []


@pytest.mark.parametrize("shape", [(3, 56, 56), (0, 3, 56, 56), (2, 1, 56, 56)])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"uint8 frames \[F, 3, H, W\]"):
        film_strip(torch.zeros(shape, dtype=torch.uint8))


def test_float_frames_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float32"):
        film_strip(torch.zeros(2, 3, 56, 56))
