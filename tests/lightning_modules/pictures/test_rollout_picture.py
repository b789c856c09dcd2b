"""A picture is checked by the words that are drawn, line by line: completions, scores, times."""

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from PIL import ImageDraw
from torch import Tensor

from datamodules.types import EncodedPrompt, VideoRecord, VisionInput
from lightning_modules.pictures.rollout_picture import rollout_picture
from lightning_modules.rollouts.sample import RolloutSample
from lightning_modules.rollouts.types import Completion, RolloutGroup
from rewards.types import ProblemType, RewardBreakdown


def sample(
    texts: list[str],
    total: list[float],
    advantages: list[float],
    *,
    frames: Tensor | None = None,
    truncated: tuple[int, ...] = (),
    **components: list[float],
) -> RolloutSample:
    """One group, each completion of five tokens."""
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
    scores = {name: torch.tensor([values]) for name, values in components.items()}
    breakdown = RewardBreakdown(total=torch.tensor([total]), components=scores, contributions=scores, seconds={})
    group = RolloutGroup(prompt=prompt, completions=completions)
    return RolloutSample(groups=[group], breakdown=breakdown, advantages=torch.tensor([advantages]))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, float, float, str, float]]:
    """(picture, y, x, text, right end) of everything that is written."""
    seen = []
    text = ImageDraw.ImageDraw.text

    def recorded(draw, position, words, color, font, **options):
        seen.append((draw, position[1], position[0], words, position[0] + font.getlength(words)))
        return text(draw, position, words, color, font, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recorded)
    return seen


def lines(drawn) -> list[str]:
    """What is written, line by line."""
    rows = defaultdict(list)
    for draw, y, _, words, _ in drawn:
        rows[draw, y].append(words)
    return [" ".join(row) for row in rows.values()]


def test_best_and_worst_are_written_out_with_their_scores(drawn):
    frames = torch.zeros(4, 3, 56, 56, dtype=torch.uint8)
    scored = sample(
        ["first", "second", "third"],
        [0.5, 1.5, 0.0],
        [-0.2, 1.1, -0.9],
        frames=frames,
        truncated=(2,),
        accuracy=[0.0, 1.0, 0.0],
        format=[1.0, 1.0, 0.0],
    )
    picture = rollout_picture(scored, 0)
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3 and picture.shape[2] == 960
    # 2 temporal patches of 0.5 s over 4 frames: 0.25 s from frame to frame.
    assert lines(drawn) == [
        "0.00 s 0.25 s 0.50 s 0.75 s",
        "problem_id 7   multiple choice",
        "Which color appears first?",
        "A. red",
        "B. green",
        "gold <answer>A</answer>",
        "rewards 0.50 1.50 0.00",
        "best #2 of 3 reward 1.50 advantage +1.10 5 tokens",
        "accuracy 1.00 format 1.00",
        "second",
        "worst #3 of 3 reward 0.00 advantage -0.90 5 tokens truncated",
        "accuracy 0.00 format 0.00",
        "third",
    ]


def test_a_group_that_scores_alike_is_written_out_once(drawn):
    rollout_picture(sample(["", "b"], [1.0, 1.0], [0.0, 0.0]), 0)
    assert [line for line in lines(drawn) if " of 2" in line] == [
        "all score alike #1 of 2 reward 1.00 advantage 0 5 tokens"
    ]
    assert lines(drawn)[-1] == "(no text)"


def test_everything_fits_on_the_page_and_every_word_is_there(drawn):
    text = "alpha beta gamma " * 30 + "x" * 300
    names = {f"reward_number_{number}": [1.0] for number in range(12)}
    picture = rollout_picture(sample([text], [1.0], [0.0], **names), 0, width=700)
    assert max(end for *_, end in drawn) <= 700 == picture.shape[2]
    written = "".join(lines(drawn)).replace(" ", "")
    assert text.replace(" ", "") in written
    assert all(f"{name}1.00" in written for name in names)


def test_signs_that_nobody_sees_are_shown(drawn):
    rollout_picture(sample(["a\u202egnp.exe\x1b[2J\nb"], [1.0], [0.0]), 0)
    assert lines(drawn)[-2:] == [r"a\u202egnp.exe\x1b[2J", "b"]


def test_a_long_text_loses_its_middle_and_says_how_much(drawn):
    rollout_picture(sample(["\n".join(f"line {number}" for number in range(100))], [1.0], [0.0]), 0)
    written = [line for line in lines(drawn) if "line" in line]
    (note,) = [line for line in written if "left out" in line]
    kept = len(written) - 1
    assert note == f"... {100 - kept} of 100 lines left out ..."
    assert (written[0], written[-1]) == ("line 0", "line 99")
