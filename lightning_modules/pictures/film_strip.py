"""Pictures of rollouts for people: what the policy saw, what it was asked, its best and its worst answer.

Shapes: F frames, G completions per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.types import EncodedPrompt
from lightning_modules.pictures.picture_cards import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PAGE,
    RED,
    SMALL,
    SPACER,
    SPAN_GAP,
    TITLE,
    Row,
    Span,
    card,
    card_text_width,
    drawable,
    flowing,
    font,
    paragraph,
    stacked,
)
from lightning_modules.rollouts.types import Completion, RolloutGroup

FILM, HOLE, STAMP = "#16181d", "#4a4f5a", "#d6d9df"
MARGIN, BAND, TILE_GAP, MAX_TILE_HEIGHT = 14, 18, 6, 260
QUESTION_LINES, GOLD_LINES, COMPLETION_LINES = 12, 4, 14


def film_strip(
    frames: Tensor, *, width: int = 960, max_frames: int = 8, seconds_per_frame: float | None = None
) -> Image.Image:
    """Frames side by side on a strip of film, evenly chosen, first and last included.

    Small frames are enlarged without smoothing (the model sees those pixels), large ones are reduced.

    Args:
        frames: uint8 [F, 3, H, W].
        width: of the picture, in pixels.
        max_frames: how many of the F frames are shown at most.
        seconds_per_frame: time from one frame to the next, for the stamps; None numbers the frames instead.

    Raises:
        ValueError: `frames` is not uint8 [F, 3, H, W] with F >= 1, or `max_frames` < 1.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or frames.numel() == 0:
        raise ValueError(
            f"film_strip takes uint8 frames [F, 3, H, W], F >= 1; got {frames.dtype} {list(frames.shape)}."
        )
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; it must be at least 1.")
    total, _, high, wide = frames.shape
    shown = min(total, max_frames)
    chosen = [round(i * (total - 1) / max(shown - 1, 1)) for i in range(shown)]
    # Wide frames would be slits in a row of eight.
    columns = min(shown, 4 if wide > 1.2 * high else 8)
    cell = (width - 2 * MARGIN - (columns - 1) * TILE_GAP) // columns
    scale = min(cell / wide, MAX_TILE_HEIGHT / high)
    tile = (max(round(wide * scale), 1), max(round(high * scale), 1))

    row_height = tile[1] + 3 * BAND
    pitch_x, pitch_y = tile[0] + TILE_GAP, row_height + TILE_GAP
    rows = -(-shown // columns)
    strip = Image.new("RGB", (width, rows * pitch_y - TILE_GAP), PAGE)
    draw = ImageDraw.Draw(strip)
    for row in range(rows):
        _film_base(draw, row * pitch_y, width, row_height)
    left = (width - columns * pitch_x + TILE_GAP) // 2
    for place, index in enumerate(chosen):
        x, y = left + place % columns * pitch_x, place // columns * pitch_y + BAND
        strip.paste(_tile(frames[index], tile), (x, y))
        if total > 1:
            stamp = f"frame {index + 1}" if seconds_per_frame is None else f"{index * seconds_per_frame:.2f} s"
            draw.text((x + tile[0] / 2, y + tile[1] + BAND / 2), stamp, STAMP, font(SMALL), anchor="mm")
    return strip


def rollout_picture(
    group: RolloutGroup,
    components: Mapping[str, Sequence[float]],
    total: Sequence[float],
    advantages: Sequence[float],
    *,
    chosen: Sequence[int] | None = None,
    width: int = 960,
) -> Tensor:
    """One group on a page: film strip, question, gold answer, the rewards of all completions, and some written out.

    Args:
        group: the prompt and its G completions.
        components: reward name -> G raw scores.
        total: G rewards.
        advantages: G advantages.
        chosen: which completions are written out; None takes the best and the worst by `total` (the first one only
            if all score alike).
        width: of the picture, in pixels.

    Returns:
        uint8 [3, height, width], what TensorBoard's `add_image` takes.

    Raises:
        ValueError: an index in `chosen` is not in 0..G-1.
    """
    count = len(group.completions)
    sizes = {"total": len(total), "advantages": len(advantages)} | {name: len(row) for name, row in components.items()}
    assert set(sizes.values()) == {count}, f"scores of {count} completions have other lengths: {sizes}"
    roles = _best_and_worst(total) if chosen is None else dict.fromkeys(chosen, "completion")
    if any(not 0 <= index < count for index in roles):
        raise ValueError(f"chosen is {list(roles)}; the group's completions are numbered 0 to {count - 1}.")

    inner = card_text_width(width)
    blocks = [card(_question_rows(group.prompt, total, advantages, inner), BLUE, width)]
    if group.prompt.frames is not None:
        seconds = _seconds_per_frame(group.prompt)
        blocks.insert(0, film_strip(group.prompt.frames, width=width, seconds_per_frame=seconds))
    for index, role in roles.items():
        accent = {"best": GREEN, "worst": RED}.get(role, FAINT)
        gain = float(advantages[index])
        head = [
            Span(f"{role}  #{index + 1} of {count}", accent, TITLE),
            Span(f"reward {float(total[index]):.2f}", INK, chip=True),
            Span(f"advantage {gain:+.2f}" if gain else "advantage 0", _sign_color(gain), chip=True),
        ]
        scores = {name: float(row[index]) for name, row in components.items()}
        blocks.append(card(_completion_rows(group.completions[index], head, scores, inner), accent, width))
    page = stacked(blocks, width)
    return torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).view(page.height, width, 3).permute(2, 0, 1)


def _best_and_worst(total: Sequence[float]) -> dict[int, str]:
    """Index -> role of the completions to write out."""
    best = max(range(len(total)), key=lambda i: total[i])
    worst = min(range(len(total)), key=lambda i: total[i])
    if best == worst:
        return {best: "completion" if len(total) == 1 else "all score alike"}
    return {best: "best", worst: "worst"}


def _seconds_per_frame(prompt: EncodedPrompt) -> float | None:
    """From the seconds per temporal patch that the model is told; None where there is no video."""
    assert prompt.frames is not None
    if prompt.vision is None or not bool(prompt.vision.is_video[0]):
        return None
    temporal_patches = int(prompt.vision.grid_thw[0, 0])
    return float(prompt.vision.seconds_per_patch[0]) * temporal_patches / len(prompt.frames)


def _question_rows(prompt: EncodedPrompt, total: Sequence[float], advantages: Sequence[float], width: int) -> list[Row]:
    record = prompt.record
    origin = [f"problem_id {record.problem_id}", str(record.problem_type), record.data_source]
    question = "\n".join([record.problem, *record.options])
    label = Span("gold", FAINT)
    gold = paragraph(record.solution, width - int(label.width + SPAN_GAP), GOLD_LINES, color=GREEN)
    chips = [
        Span(f"{float(value):.2f}", _sign_color(float(gain)), SMALL, chip=True)
        for value, gain in zip(total, advantages, strict=True)
    ]
    return [
        [Span("   ".join(drawable(part) for part in origin if part), FAINT, SMALL)],
        SPACER,
        *paragraph(question, width, QUESTION_LINES),
        SPACER,
        [label, *gold[0]],
        *gold[1:],
        *flowing([Span("rewards", FAINT), *chips], width),
    ]


def _completion_rows(completion: Completion, head: Row, scores: Mapping[str, float], width: int) -> list[Row]:
    tokens = len(completion.token_ids)
    size = Span(f"{tokens:,} token{'' if tokens == 1 else 's'}", FAINT, chip=True)
    cut = [Span("truncated", ORANGE, chip=True)] if completion.truncated else []
    raw = [Span(f"{drawable(name)} {value:.2f}", BLUE, SMALL, chip=True) for name, value in scores.items()]
    if completion.text.strip():
        text = paragraph(completion.text, width, COMPLETION_LINES, tokens=tokens)
    else:
        text = [[Span("(no text)", FAINT)]]
    return [*flowing([*head, size, *cut], width), *flowing(raw, width), SPACER, *text]


def _sign_color(gain: float) -> str:
    return GREEN if gain > 0 else RED if gain < 0 else FAINT


def _film_base(draw: ImageDraw.ImageDraw, top: int, width: int, height: int) -> None:
    """The dark strip with its two lines of sprocket holes."""
    draw.rectangle((0, top, width, top + height - 1), FILM)
    for x in range(MARGIN, width - MARGIN, 24):
        for y in (top + 5, top + height - BAND + 5):
            draw.rounded_rectangle((x, y, x + 11, y + 7), radius=2, fill=HOLE)


def _tile(frame: Tensor, size: tuple[int, int]) -> Image.Image:
    """One frame [3, H, W] at `size` (width, height)."""
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy())
    factor = -(-size[0] // image.width)
    if factor == 1:
        return image.resize(size, Image.Resampling.LANCZOS)
    # A whole multiple first: nearest-neighbor by a fraction would make some pixels wider than others.
    enlarged = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return enlarged.resize(size, Image.Resampling.BOX)
