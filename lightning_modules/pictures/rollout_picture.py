"""A picture of one group for people: what the policy saw, what it was asked, its best and its worst answer.

Shapes: G completions per prompt.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datamodules.types import EncodedPrompt
from datamodules.video.types import LAYOUT, printable
from lightning_modules.pictures.film_strip import film_strip
from lightning_modules.rollouts.sample import RolloutSample

PAGE, CARD, INK, FAINT = "#eceef1", "#ffffff", "#1f2430", "#737b8c"
GREEN, RED, ORANGE, BLUE = "#1a7f45", "#c2362b", "#9a5b00", "#2f5fb3"
FONT_SIZE, LINE_HEIGHT, PADDING, ACCENT, GAP = 15, 22, 16, 6, 12
QUESTION_LINES, GOLD_LINES, COMPLETION_LINES = 12, 4, 14


class Words(NamedTuple):
    """Text in one color."""

    text: str
    color: str = INK


Line = list[Words]


def rollout_picture(sample: RolloutSample, number: int, *, width: int = 960) -> Tensor:
    """Group `number` of a sample on a page: frames, question, gold answer, all rewards, best and worst completion.

    uint8 [3, height, width] in pixels, what TensorBoard's `add_image` takes.
    """
    prompt, blocks = sample.groups[number].prompt, []
    if prompt.frames is not None:
        blocks.append(film_strip(prompt.frames, width=width, seconds_per_frame=_seconds_per_frame(prompt)))
    blocks.append(_card(_question(sample, number, _columns(width)), BLUE, width))
    for index, (role, color) in _shown(sample.breakdown.total[number].tolist()).items():
        blocks.append(_card(_completion(sample, number, index, Words(role, color), _columns(width)), color, width))

    page = Image.new("RGB", (width, sum(block.height + GAP for block in blocks) - GAP), PAGE)
    top = 0
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height + GAP
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)


def _shown(total: Sequence[float]) -> dict[int, tuple[str, str]]:
    """Index -> (role, color) of the completions to write out."""
    best, worst = total.index(max(total)), total.index(min(total))
    if best == worst:
        return {best: ("completion" if len(total) == 1 else "all score alike", FAINT)}
    return {best: ("best", GREEN), worst: ("worst", RED)}


def _seconds_per_frame(prompt: EncodedPrompt) -> float | None:
    """From the seconds per temporal patch that the model is told; None where there is no video."""
    if prompt.vision is None or prompt.frames is None or not bool(prompt.vision.is_video[0]):
        return None
    temporal_patches = int(prompt.vision.grid_thw[0, 0])
    return float(prompt.vision.seconds_per_patch[0]) * temporal_patches / len(prompt.frames)


def _question(sample: RolloutSample, number: int, columns: int) -> Iterator[Line]:
    record = sample.groups[number].prompt.record
    origin = [f"problem_id {record.problem_id}", str(record.problem_type), record.data_source]
    yield [Words(printable("   ".join(part for part in origin if part)), FAINT)]
    yield []
    yield from _paragraph("\n".join([record.problem, *record.options]), columns, QUESTION_LINES)
    yield []
    yield from _paragraph(f"gold {record.solution}", columns, GOLD_LINES, GREEN)
    scores = zip(sample.breakdown.total[number].tolist(), sample.advantages[number].tolist(), strict=True)
    rewards = [Words(f"{total:.2f}", _sign_color(advantage)) for total, advantage in scores]
    yield from _flowing([Words("rewards", FAINT), *rewards], columns)


def _completion(sample: RolloutSample, number: int, index: int, role: Words, columns: int) -> Iterator[Line]:
    completions, place = sample.groups[number].completions, (number, index)
    completion, advantage = completions[index], sample.advantages[place].item()
    tokens = len(completion.token_ids)
    facts = [
        Words(f"{role.text} #{index + 1} of {len(completions)}", role.color),
        Words(f"reward {sample.breakdown.total[place].item():.2f}"),
        Words(f"advantage {advantage:+.2f}" if advantage else "advantage 0", _sign_color(advantage)),
        Words(f"{tokens:,} token{'' if tokens == 1 else 's'}", FAINT),
    ]
    if completion.truncated:
        facts.append(Words("truncated", ORANGE))
    scores = [Words(f"{name} {raw[place].item():.2f}", BLUE) for name, raw in sample.breakdown.components.items()]
    yield from _flowing(facts, columns)
    yield from _flowing(scores, columns)
    yield []
    yield from (
        _paragraph(completion.text, columns, COMPLETION_LINES)
        if completion.text.strip()
        else [[Words("(no text)", FAINT)]]
    )


def _sign_color(advantage: float) -> str:
    return GREEN if advantage > 0 else RED if advantage < 0 else FAINT


def _paragraph(text: str, columns: int, max_lines: int, color: str = INK) -> list[Line]:
    """Wrapped text; if too long, its beginning and its end around a line that says how much is missing."""
    text = printable(text, keep=LAYOUT).strip("\n")
    lines = [line for source in text.split("\n") for line in textwrap.wrap(source, columns) or [""]]
    if len(lines) <= max_lines:
        return [[Words(line, color)] for line in lines]
    last = max_lines // 3
    first = max_lines - 1 - last
    note = Words(f"... {len(lines) - first - last:,} of {len(lines):,} lines left out ...", FAINT)
    return [
        *([Words(line, color)] for line in lines[:first]),
        [note],
        *([Words(line, color)] for line in lines[-last:]),
    ]


def _flowing(words: Sequence[Words], columns: int) -> list[Line]:
    """Words two spaces apart, in lines of at most `columns` characters."""
    lines: list[Line] = []
    room = 0
    for item in words:
        if not lines or len(item.text) > room:
            lines.append([])
            room = columns
        lines[-1].append(item)
        room -= len(item.text) + 2
    return lines


def _card(content: Iterator[Line], accent: str, width: int) -> Image.Image:
    """Lines on white with a bar of the accent color at the left."""
    lines = list(content)
    image = Image.new("RGB", (width, len(lines) * LINE_HEIGHT + 2 * PADDING), CARD)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, ACCENT - 1, image.height), accent)
    for number, line in enumerate(lines):
        x = float(ACCENT + PADDING)
        for words in line:
            draw.text((x, PADDING + (number + 0.5) * LINE_HEIGHT), words.text, words.color, _font(), anchor="lm")
            x += _font().getlength(words.text + "  ")
    return image


def _columns(width: int) -> int:
    """Characters in a line of a card of `width` pixels."""
    return int((width - ACCENT - 2 * PADDING) / _font().getlength("m"))


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans Mono, which comes with matplotlib.

    It has Latin, Greek, Cyrillic and many signs; other scripts appear as boxes.
    """
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf", FONT_SIZE)
