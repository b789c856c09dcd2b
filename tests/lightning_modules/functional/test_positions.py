"""Positions against the reference's published numbers, for rows padded on either side."""

import json
from pathlib import Path

import pytest
import torch

from lightning_modules.functional.positions import mrope_position_ids

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "mrope_qwen2_5_vl.json").read_text())
TEXT, START, END, IMAGE, VIDEO, PAD = 5, 1, 2, 3, 4, 0


def tokens_of(segments):
    ids, images, videos, seconds = [], [], [], []
    for segment in segments:
        if "text" in segment:
            ids += [TEXT] * segment["text"]
            continue
        kind = "video" if "video" in segment else "image"
        t, h, w = segment[kind]
        ids += [START] + [VIDEO if kind == "video" else IMAGE] * (t * h * w // 4) + [END]
        (videos if kind == "video" else images).append(segment[kind])
        if kind == "video":
            seconds.append(segment["second_per_grid"])
    return ids, images, videos, seconds


def positions(ids, mask, images, videos, seconds):
    return mrope_position_ids(
        torch.tensor(ids),
        torch.tensor(mask),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
        torch.tensor(seconds, dtype=torch.float32) if seconds else None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        spatial_merge_size=GOLDEN["spatial_merge_size"],
        tokens_per_second=GOLDEN["tokens_per_second"],
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["segments"]))
def test_one_row_reproduces_the_reference(case):
    ids, *media = tokens_of(case["segments"])
    position_ids, next_position = positions([ids], [[1] * len(ids)], *media)
    assert position_ids[:, 0].tolist() == case["position_ids"]
    assert next_position.item() - len(ids) == case["rope_delta"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_reproduces_the_reference(side):
    rows, masks, images, videos, seconds = [], [], [], [], []
    length = max(len(tokens_of(case["segments"])[0]) for case in GOLDEN["cases"]) + 2
    for case in GOLDEN["cases"]:
        ids, *media = tokens_of(case["segments"])
        padding = [PAD] * (length - len(ids))
        rows.append(padding + ids if side == "left" else ids + padding)
        masks.append([0] * len(padding) + [1] * len(ids) if side == "left" else [1] * len(ids) + [0] * len(padding))
        images += media[0]
        videos += media[1]
        seconds += media[2]
    position_ids, next_position = positions(rows, masks, images, videos, seconds)
    for row, case in enumerate(GOLDEN["cases"]):
        kept = torch.tensor(masks[row]).bool()
        assert position_ids[:, row, kept].tolist() == case["position_ids"]
        assert next_position[row].item() == max(map(max, case["position_ids"])) + 1


def test_text_continues_after_the_largest_axis():
    # One temporal patch of 2 x 6 merged patches: positions 0, 0..1, 0..5, so the next token stands at 6, not at 1 or 2.
    ids = [VIDEO] * 12 + [TEXT]
    position_ids, next_position = positions([ids], [[1] * 13], [], [[1, 4, 12]], [1.0])
    assert position_ids[:, 0, -1].tolist() == [6, 6, 6]
    assert next_position.tolist() == [7]


@pytest.mark.parametrize(
    ("ids", "videos", "message"),
    [
        ([VIDEO] * 3, [[1, 4, 4]], "too few media tokens"),
        ([VIDEO] * 4, [], "no grid is left"),
        ([TEXT], [[1, 4, 4]], "have no media tokens"),
    ],
)
def test_media_and_grids_that_disagree_are_refused(ids, videos, message):
    with pytest.raises(ValueError, match=message):
        positions([ids], [[1] * len(ids)], [], videos, [1.0] * len(videos))
