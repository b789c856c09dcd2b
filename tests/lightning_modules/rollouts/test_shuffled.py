from dataclasses import replace

import pytest
import torch

from datamodules.encoding import patchify
from datamodules.video.types import PatchGeometry
from lightning_modules.rollouts.shuffled import shuffled_prompt


@pytest.fixture
def prompt(mixed_prompts):
    """A video prompt whose frames all differ."""
    prompt = next(prompt for prompt in mixed_prompts if prompt.record.data_type == "video")
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, prompt.frames.shape, dtype=torch.uint8, generator=generator)
    vision = replace(prompt.vision, patches=patchify(frames, PatchGeometry())[0])
    return replace(prompt, frames=frames, vision=vision)


def test_frames_change_their_order_and_nothing_else(prompt):
    for seed in range(20):
        shuffled = shuffled_prompt(prompt, PatchGeometry(), seed)
        assert not torch.equal(shuffled.frames, prompt.frames)
        assert sorted(f.sum().item() for f in shuffled.frames) == sorted(f.sum().item() for f in prompt.frames)
        assert torch.equal(shuffled.vision.patches, patchify(shuffled.frames, PatchGeometry())[0])
        assert torch.equal(shuffled.input_ids, prompt.input_ids)
        assert torch.equal(shuffled.vision.grid_thw, prompt.vision.grid_thw)


def test_the_prompt_itself_stays(prompt):
    before = prompt.frames.clone()
    assert not torch.equal(shuffled_prompt(prompt, PatchGeometry(), 0).frames, prompt.frames)
    assert torch.equal(prompt.frames, before)
    assert torch.equal(prompt.vision.patches, patchify(before, PatchGeometry())[0])
