"""Prompts whose video shows its frames in another order, for the temporal reward."""

from __future__ import annotations

from dataclasses import replace

import torch

from datamodules.encoding import patchify
from datamodules.types import EncodedPrompt
from datamodules.video.types import PatchGeometry


def shuffled_prompt(prompt: EncodedPrompt, geometry: PatchGeometry, seed: int) -> EncodedPrompt:
    """The same question about the same frames in random order; tokens, grid and positions stay as they are.

    The order is never the true one unless the video has a single frame.
    """
    assert prompt.vision is not None and prompt.frames is not None, "only videos have an order of frames"
    count = len(prompt.frames)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    while count > 1 and bool((order == torch.arange(count)).all()):
        order = torch.randperm(count, generator=generator)
    frames = prompt.frames[order]
    patches, _ = patchify(frames, geometry)
    return replace(prompt, frames=frames, vision=replace(prompt.vision, patches=patches))
