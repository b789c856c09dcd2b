"""From a record and its clip to token ids and vision patches.

Shapes: P prompt tokens, F frames, N vision patches, D values per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.prompts import PromptTemplate
from datamodules.types import EncodedPrompt, VideoRecord, VisionInput
from datamodules.video.types import PatchGeometry, VideoClip
from rewards.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def patchify(frames: Tensor, geometry: PatchGeometry) -> tuple[Tensor, Tensor]:
    """Cut frames into the patch order of Qwen2-VL: windows of merge_size x merge_size patches stay together.

    Args:
        frames: [F, 3, H, W]; H and W multiples of patch_size * merge_size. The last frame is repeated to fill a
            temporal patch, which is how an image becomes one.
        geometry: patch sizes.

    Returns:
        patches [N, D] of the frames' dtype and grid_thw int64 [3].
    """
    missing = -frames.shape[0] % geometry.temporal_patch_size
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    count, channels, height, width = frames.shape
    side = geometry.grid
    assert height % side == 0 and width % side == 0, f"{height}x{width} is not a multiple of {side}"
    t, y, x = count // geometry.temporal_patch_size, height // side, width // side
    merge, patch = geometry.merge_size, geometry.patch_size
    blocks = frames.reshape(t, geometry.temporal_patch_size, channels, y, merge, patch, x, merge, patch)
    # -> time, window row, window column, patch row, patch column | channel, frame, pixel row, pixel column
    blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return blocks.reshape(t * y * x * merge**2, -1), torch.tensor([t, y * merge, x * merge])


@dataclass(frozen=True)
class PromptEncoder:
    """Turns records into `EncodedPrompt`s with one tokenizer, one template and one patch geometry."""

    tokenizer: PreTrainedTokenizerBase
    """Of a Qwen2-VL model; its chat template writes one media token per image or video."""
    template: PromptTemplate
    _: KW_ONLY
    geometry: PatchGeometry = PatchGeometry()  # noqa: RUF009 - frozen
    """How frames are cut into patches."""
    seconds_per_patch: float | None = None
    """None takes the real time between the sampled frames; a number is used for every video (published training:
    1.0)."""
    max_prompt_tokens: int = 16384
    """Longer prompts are refused, since cutting one would cut vision tokens."""

    @cached_property
    def media_tokens(self) -> dict[str, int]:
        """Data type -> id of the token that stands for its media."""
        return {name: media_token_id(self.tokenizer, f"<|{name}_pad|>") for name in ("video", "image")}

    def encode_prompt(self, record: VideoRecord, clip: VideoClip | None) -> EncodedPrompt:
        """Encode one prompt, generation marker included.

        Raises:
            UserError: the text holds a media token of its own, or the prompt is too long.
        """
        text = self.template.text(record, self.tokenizer)
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False).input_ids)
        vision = None if clip is None else self._encode_clip(clip)
        ids = self._expand_media(ids, vision, record)
        if len(ids) > self.max_prompt_tokens:
            raise UserError(
                f"{record.where}: the prompt has {len(ids)} tokens, more than max_prompt_tokens = "
                f"{self.max_prompt_tokens}. Lower the number of frames or pixels, or raise the limit."
            )
        return EncodedPrompt(record=record, input_ids=ids, vision=vision, frames=None if clip is None else clip.frames)

    def encode_target(self, record: VideoRecord) -> Tensor:
        """int64 [C]: the answer to imitate, end-of-sequence token included."""
        ids = self.tokenizer(self.template.target(record), add_special_tokens=False).input_ids
        return torch.tensor([*ids, self.tokenizer.eos_token_id])

    def _encode_clip(self, clip: VideoClip) -> VisionInput:
        patches, grid = patchify(clip.frames, self.geometry)
        seconds = 0.0
        if clip.is_video:
            seconds = self.seconds_per_patch or self.geometry.temporal_patch_size / clip.sample_fps
        return VisionInput(
            patches=patches,
            grid_thw=grid[None],
            is_video=torch.tensor([clip.is_video]),
            seconds_per_patch=torch.tensor([seconds]),
        )

    def _expand_media(self, ids: Tensor, vision: VisionInput | None, record: VideoRecord) -> Tensor:
        """Repeat the one media token of the chat template once per merged patch."""
        places = torch.isin(ids, torch.tensor(list(self.media_tokens.values()))).nonzero().flatten().tolist()
        if len(places) != (0 if vision is None else 1):
            raise UserError(
                f"{record.where}: the prompt holds {len(places)} media tokens where its data_type {record.data_type!r} "
                "needs exactly one for a video or an image and none for text; remove <|video_pad|> and <|image_pad|> "
                "from the question."
            )
        if vision is None:
            return ids
        place = places[0]
        expected = self.media_tokens[record.data_type]
        assert ids[place] == expected, f"{record.where}: chat template wrote token {ids[place]}, expected {expected}"
        repeats = int(vision.grid_thw[0].prod()) // self.geometry.merge_size**2
        return torch.cat([ids[:place], ids[place].repeat(repeats), ids[place + 1 :]])


def media_token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Id of a Qwen media token.

    Raises:
        UserError: the tokenizer has no such token, so it is not one of a Qwen2-VL model.
    """
    index = tokenizer.get_vocab().get(token)
    if index is None:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no token {token}; "
            "give the folder or name of a Qwen2-VL or Qwen2.5-VL model."
        )
    return index


def join_vision(inputs: Sequence[VisionInput | None]) -> VisionInput | None:
    """Concatenate the media of several prompts in order; None when none has any."""
    present = [vision for vision in inputs if vision is not None]
    if not present:
        return None
    return VisionInput(
        patches=torch.cat([vision.patches for vision in present]),
        grid_thw=torch.cat([vision.grid_thw for vision in present]),
        is_video=torch.cat([vision.is_video for vision in present]),
        seconds_per_patch=torch.cat([vision.seconds_per_patch for vision in present]),
    )
