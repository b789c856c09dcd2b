"""The pictures are checked where a wrong one would mislead: frames, stamps, completions, scores, sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.types import EncodedPrompt, VideoRecord, VisionInput
from lightning_modules.pictures import film_strip as module
from lightning_modules.pictures.film_strip import film_strip, rollout_picture
from lightning_modules.pictures.picture_cards import Span, drawable, flowing, font, paragraph
from lightning_modules.rollouts.types import Completion, RolloutGroup
from rewards.types import ProblemType

WIDTH = 912


def gray_frames(count: int, height: int = 56, width: int = 56) -> Tensor:
    """Frame i is a plain gray of 10 * i."""
    levels = (10 * torch.arange(count)).to(torch.uint8)
    return levels.view(count, 1, 1, 1).expand(count, 3, height, width).contiguous()


def rollout_group(texts: list[str], frames: Tensor | None = None, truncated: tuple[int, ...] = ()) -> RolloutGroup:
    record = VideoRecord(
        problem_id="7",
        problem="Which color appears first?",
        data_type="text" if frames is None else "video",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        solution="<answer>A</answer>",
        options=("A. red", "B. green"),
        path=None if frames is None else "clip.mp4",
        file=Path("records.jsonl"),
        line=1,
    )
    vision = None
    if frames is not None:
        vision = VisionInput(
            patches=torch.zeros(1, 1, dtype=torch.uint8),
            grid_thw=torch.tensor([[len(frames) // 2, 4, 4]]),
            is_video=torch.tensor([True]),
            seconds_per_patch=torch.tensor([0.5]),
        )
    completions = tuple(
        Completion(
            token_ids=torch.zeros(5, dtype=torch.int64),
            text=text,
            sampling_logprobs=torch.zeros(5),
            policy_logprobs=torch.zeros(5),
            truncated=index in truncated,
        )
        for index, text in enumerate(texts)
    )
    prompt = EncodedPrompt(record=record, input_ids=torch.zeros(3, dtype=torch.int64), vision=vision, frames=frames)
    return RolloutGroup(prompt=prompt, completions=completions)


def words(rows: list[list[Span]]) -> list[str]:
    return [" ".join(span.text for span in row) for row in rows]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[list[list[Span]]]:
    """Rows of every card that gets drawn."""
    seen = []
    draw = module.card
    monkeypatch.setattr(module, "card", lambda rows, *rest: seen.append(rows) or draw(rows, *rest))
    return seen


@pytest.fixture
def stamps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen = []
    text = module.ImageDraw.ImageDraw.text

    def recorded(draw, position, words, *args, **kwargs):
        seen.append(words)
        return text(draw, position, words, *args, **kwargs)

    monkeypatch.setattr(module.ImageDraw.ImageDraw, "text", recorded)
    return seen


def test_small_frames_are_enlarged_and_evenly_chosen():
    # 8 columns on 960 pixels: (960 - 2*14 - 7*6) // 8 = 111 pixels a tile; pitch 117; left margin
    # (960 - 8*117 + 6) // 2 = 15; tiles start below the band of 18.
    strip = film_strip(gray_frames(16))
    assert strip.size == (960, 111 + 3 * 18)
    middles = [strip.getpixel((15 + 117 * column + 55, 18 + 55)) for column in range(8)]
    # round(i * 15 / 7) for i = 0..7 is 0, 2, 4, 6, 9, 11, 13, 15; frame n is gray 10 * n.
    assert middles == [(10 * n,) * 3 for n in (0, 2, 4, 6, 9, 11, 13, 15)]


def test_enlarging_keeps_pixels_sharp():
    frame = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    frame[..., 1] = 200
    # One frame of 2 x 2 grows to the height limit of 260: only the two grays of the source may appear on the tile.
    strip = film_strip(frame).crop((350, 18, 610, 278))
    assert {color for _, color in strip.getcolors()} == {(0, 0, 0), (200, 200, 200)}


def test_wide_frames_stand_in_two_rows():
    # 4 columns: cell (960 - 28 - 18) // 4 = 228; 228 * 224 / 420 = 121.6 -> 122 high; two rows and a gap of 6.
    strip = film_strip(gray_frames(16, 224, 420))
    assert strip.size == (960, 2 * (122 + 3 * 18) + 6)


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


def test_float_frames_and_no_frames_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float32"):
        film_strip(torch.zeros(2, 3, 56, 56))
    with pytest.raises(ValueError, match="max_frames is 0"):
        film_strip(gray_frames(2), max_frames=0)


def test_best_and_worst_are_written_out_with_their_scores(cards, stamps: list[str]):
    group = rollout_group(["first", "second", "third"], gray_frames(4), truncated=(2,))
    picture = rollout_picture(
        group, {"accuracy": [0.0, 1.0, 0.0], "format": [1.0, 1.0, 0.0]}, [0.5, 1.5, 0.0], [-0.2, 1.1, -0.9]
    )
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    assert picture.shape[2] == 960
    question, best, worst = map(words, cards)
    assert question[-1] == "rewards 0.50 1.50 0.00"
    assert "gold <answer>A</answer>" in question
    assert {"Which color appears first?", "A. red", "B. green"} < set(question)
    assert best == ["best  #2 of 3 reward 1.50 advantage +1.10 5 tokens", "accuracy 1.00 format 1.00", "", "second"]
    assert worst[0] == "worst  #3 of 3 reward 0.00 advantage -0.90 5 tokens truncated"
    assert worst[-1] == "third"
    # 2 temporal patches of 0.5 s over 4 frames: 0.25 s from frame to frame.
    assert [stamp for stamp in stamps if stamp.endswith(" s")] == ["0.00 s", "0.25 s", "0.50 s", "0.75 s"]


def test_group_that_scores_alike_is_written_out_once(cards):
    rollout_picture(rollout_group(["a", ""]), {}, [1.0, 1.0], [0.0, 0.0])
    assert [rows[0][0].text for rows in cards[1:]] == ["all score alike  #1 of 2"]


def test_chosen_completions_and_an_empty_one(cards):
    group = rollout_group(["a", " ", "c"])
    rollout_picture(group, {}, [1.0, 2.0, 3.0], [-1.0, 0.0, 1.0], chosen=[1])
    assert len(cards) == 2
    assert words(cards[1])[0].startswith("completion  #2 of 3 reward 2.00 advantage 0 ")
    assert words(cards[1])[-1] == "(no text)"
    with pytest.raises(ValueError, match=r"chosen is \[3\].* 0 to 2"):
        rollout_picture(group, {}, [1.0, 2.0, 3.0], [-1.0, 0.0, 1.0], chosen=[3])


def test_scores_of_another_length_are_our_own_bug():
    with pytest.raises(AssertionError, match="accuracy"):
        rollout_picture(rollout_group(["a", "b"]), {"accuracy": [1.0]}, [1.0, 0.0], [1.0, -1.0])


def test_lines_fit_and_keep_every_word():
    text = "alpha beta gamma " * 30 + "x" * 300
    lines = [row[0].text for row in paragraph(text, WIDTH, 100)]
    assert max(font(17).getlength(line) for line in lines) <= WIDTH
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_long_text_loses_its_middle_and_says_how_much():
    # A line of 912 pixels holds far fewer than 10,000 letters, so 8 lines hold under a tenth of the text.
    text = "BEGIN " + "m" * 100_000 + " END"
    rows = paragraph(text, WIDTH, 8, tokens=1000)
    lines = [row[0].text for row in rows]
    assert len(lines) == 8
    assert lines[0] == "BEGIN"
    assert lines[-1].endswith(" END")
    # 8 // 3 = 2 lines of the end and 8 - 1 - 2 = 5 of the beginning around the note.
    kept = sum(len(line) for n, line in enumerate(lines) if n != 5)
    assert lines[5] == f"... about {(1 - kept / len(text)) * 1000:,.0f} of 1,000 tokens left out ..."


def test_line_breaks_of_the_text_are_kept():
    assert [row[0].text for row in paragraph("one\n\ntwo\n", WIDTH, 8)] == ["one", "", "two"]


def test_characters_without_a_glyph_are_spelled_or_left():
    # Accents decompose; signs have an ASCII spelling; a zero-width space and a carriage return vanish; others stay.
    assert drawable("café") == "cafe"
    assert drawable("3 \u00d7 4 \u2264 5 \u2192 a\u200bb\r") == "3 x 4 <= 5 -> ab"
    assert drawable("\u65e5\u672c") == "\u65e5\u672c"


def test_chips_flow_into_rows():
    chips = [Span("w" * 20, chip=True)] * 7
    width = int(3 * chips[0].width + 2 * 8) + 1
    assert [len(row) for row in flowing(chips, width)] == [3, 3, 1]
