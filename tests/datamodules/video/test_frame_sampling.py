"""Frame choice and sizes: the reference's recorded numbers, hand-derived cases and error messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules.video.frame_sampling import EVAL, TRAIN, FrameConfig, plan_frames, plan_image_size

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "frame_sampling.json").read_text())["rows"]
CONFIGS = {"train": TRAIN, "eval": EVAL}


def arguments(row: dict) -> tuple:
    return row["total_frames"], row["fps"], row["height"], row["width"], CONFIGS[row["profile"]]


@pytest.mark.parametrize("row", [row for row in GOLDEN if "error" not in row], ids=str)
def test_plan_equals_the_reference(row: dict) -> None:
    plan = plan_frames(*arguments(row))
    assert list(plan.indices) == row["indices"]
    assert [plan.height, plan.width] == row["resized"]
    assert plan.sample_fps == row["sample_fps"]
    grid = CONFIGS[row["profile"]].grid
    assert len(plan.indices) // 2 * (plan.height // grid) * (plan.width // grid) == row["video_tokens"]


@pytest.mark.parametrize("row", [row for row in GOLDEN if "aspect ratio" in row.get("error", "")], ids=str)
def test_too_thin_frames_are_refused_as_in_the_reference(row: dict) -> None:
    with pytest.raises(ValueError, match=r"3000 x 10 pixels, an aspect ratio of 300\.0; at most 200"):
        plan_frames(*arguments(row))


def test_every_reference_error_is_accounted_for() -> None:
    errors = [row for row in GOLDEN if "error" in row]
    assert {row["total_frames"] == 1 or "aspect ratio" in row["error"] for row in errors} == {True}


@pytest.mark.parametrize("config", [TRAIN, EVAL])
def test_one_frame_fills_one_temporal_patch(config: FrameConfig) -> None:
    plan = plan_frames(1, 30, 100, 100, config)
    assert plan.indices == (0, 0)
    # One temporal patch lasts 2 / sample_fps seconds; the clip lasts 1 / 30 s, so sample_fps = 60.
    assert plan.sample_fps == 60


def test_patches_last_as_long_as_the_clip() -> None:
    # 16 frames of a 10 s clip: 8 patches of 1.25 s.
    plan = plan_frames(300, 30, 720, 1280, TRAIN)
    assert TRAIN.temporal_patch_size / plan.sample_fps == pytest.approx(1.25)


def test_indices_equal_rounded_linspace_and_stay_exact_on_long_clips() -> None:
    for total in (32, 33, 250, 1801, 15000, 99999):
        expected = torch.linspace(0, total - 1, 32).round().long().tolist()
        assert list(plan_frames(total, 25, 64, 64, EVAL).indices) == expected
    # 10 h at 60 fps, 32 frames: the last step starts at 30 * 2159999 / 31 = 2090321.6.
    assert plan_frames(2_160_000, 60, 64, 64, EVAL).indices[-2:] == (2_090_322, 2_159_999)


def test_image_budget() -> None:
    # 1000 x 1500 in 256 * 784 = 200704 pixels: shrink = sqrt(1500000 / 200704) = 2.7338;
    # 1000 / 2.7338 / 28 = 13.06 -> 13 * 28 = 364, 1500 / 2.7338 / 28 = 19.60 -> 19 * 28 = 532.
    assert plan_image_size(1000, 1500, TRAIN) == (364, 532)
    # Within the budget: nearest multiples, 100 / 28 = 3.57 -> 4, 150 / 28 = 5.36 -> 5.
    assert plan_image_size(100, 150, TRAIN) == (112, 140)
    # Below 4 * 784 pixels: enlarge = sqrt(3136 / 200) = 3.96; 10 * 3.96 / 28 = 1.41 -> 2, 20 * 3.96 / 28 = 2.83 -> 3.
    assert plan_image_size(10, 20, TRAIN) == (56, 84)
    with pytest.raises(ValueError, match="aspect ratio of 201"):
        plan_image_size(1, 201, TRAIN)


def test_temporal_patches_of_another_size() -> None:
    plan = plan_frames(10, 10, 64, 64, replace(TRAIN, num_frames=8, temporal_patch_size=4))
    assert plan.indices == (0, 1, 3, 4, 5, 6, 8, 9)  # k * 9 / 7 = 0, 1.29, 2.57, 3.86, 5.14, 6.43, 7.71, 9
    assert plan_frames(5, 10, 64, 64, replace(TRAIN, num_frames=1, temporal_patch_size=1)).indices == (0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 15}, r"num_frames is 15; .* multiple of temporal_patch_size \(2\)"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"patch_size": 0}, "patch_size is 0; it must be at least 1"),
        ({"min_pixels": 0}, "min_pixels is 0"),
        ({"max_pixels": 1000}, r"max_pixels is 1000; it must be at least min_pixels \(100352\)"),
        ({"image_max_pixels": 700, "image_min_pixels": 1}, "28 x 28 = 784 pixels"),
    ],
)
def test_a_frame_config_says_what_is_wrong(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameConfig(**values)


@pytest.mark.parametrize(
    ("total", "fps", "height", "message"),
    [(0, 30, 64, "has 0 frames"), (9, 0, 64, "frame rate is 0"), (9, 30, 0, "64 x 0 pixels")],
)
def test_impossible_metadata_is_refused(total: int, fps: float, height: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_frames(total, fps, height, 64, TRAIN)
