"""A part of a batch is the batch of those prompts, with nothing computed again."""

from dataclasses import fields

import pytest
import torch

from datamodules.types import VisionInput


def assert_equal(actual, expected):
    for item in fields(expected):
        found, value = getattr(actual, item.name), getattr(expected, item.name)
        if isinstance(value, VisionInput):
            assert_equal(found, value)
        elif isinstance(value, torch.Tensor):
            assert found.dtype == value.dtype and torch.equal(found, value), item.name
        elif item.name == "prompts":
            assert [id(prompt) for prompt in found] == [id(prompt) for prompt in value]
        else:
            assert found == value, item.name


@pytest.mark.parametrize("kinds", [("video",), ("text",), ("image", "video", "text"), ("text", "image")])
def test_a_part_of_a_batch_is_the_batch_of_its_prompts(tiny_policy, mixed_prompts, kinds):
    whole = tiny_policy.collate(mixed_prompts)
    rows = [row for row, prompt in enumerate(mixed_prompts) if prompt.record.data_type in kinds]
    assert len({len(prompt.input_ids) for prompt in mixed_prompts}) > 2  # so that parts have another padding
    for chosen in (rows, rows[::-1], rows[:1], rows[:1] * 3):
        assert_equal(whole.select(chosen), tiny_policy.collate([mixed_prompts[row] for row in chosen]))


def test_all_prompts_in_order_are_the_batch_itself(tiny_policy, mixed_prompts):
    whole = tiny_policy.collate(mixed_prompts)
    assert whole.select(range(len(whole))) is whole


def test_features_come_along(tiny_policy, mixed_prompts):
    tiny_policy.requires_grad_(False)
    whole = tiny_policy.with_frozen_features(tiny_policy.collate(mixed_prompts))
    for row, prompt in enumerate(mixed_prompts):
        alone = tiny_policy.with_frozen_features(tiny_policy.collate([prompt]))
        torch.testing.assert_close(whole.select([row]).vision_features, alone.vision_features, rtol=0, atol=1e-5)
    text = [row for row, prompt in enumerate(mixed_prompts) if prompt.vision is None]
    assert whole.select(text).vision is None
    assert whole.select(text).vision_features.shape == (0, whole.vision_features.shape[1])


def test_known_features_keep_the_pixels_out_of_the_update(tiny_policy, mixed_prompts):
    tiny_policy.requires_grad_(False)
    batch = tiny_policy.collate(mixed_prompts[:2])
    completions = [[torch.tensor([20, 21])], [torch.tensor([22])]]
    assert tiny_policy.pack(batch, completions).vision is not None
    packed = tiny_policy.pack(tiny_policy.with_frozen_features(batch), completions)
    assert packed.vision is None and packed.vision_features is not None
