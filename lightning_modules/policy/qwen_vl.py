"""Everything that is particular to the Qwen2-VL and Qwen2.5-VL families.

Weights, modules and checkpoints are those of transformers; positions, the order of media and the way in are ours.

Shapes: B rows, L tokens, N vision patches, D values per patch, M merged vision tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from datamodules.types import VisionInput
from datamodules.video.types import PatchGeometry
from lightning_modules.functional.positions import mrope_position_ids
from lightning_modules.policy.vision_tower import accelerate, segment_indices

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


class QwenVLFamily:
    """Adapter between a transformers Qwen2-VL or Qwen2.5-VL model and the policy; methods as in `ModelFamily`.

    Args:
        model: `Qwen2_5_VLForConditionalGeneration` or `Qwen2VLForConditionalGeneration`.
        processor: its processor, for the pixel statistics and the tokenizer.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        config, vision = model.config, model.config.vision_config
        accelerate(model.model.visual)
        self.image_token_id: int = config.image_token_id
        self.video_token_id: int = config.video_token_id
        self.geometry = PatchGeometry(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )
        # Qwen2-VL knows no seconds: one temporal position per temporal patch.
        self.tokens_per_second: float | None = getattr(vision, "tokens_per_second", None)
        self.image_mean = tuple(processor.image_processor.image_mean)
        self.image_std = tuple(processor.image_processor.image_std)
        vocabulary = processor.tokenizer.get_vocab()
        names = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
        self.vision_token_ids = tuple(vocabulary[name] for name in names if name in vocabulary)

    def positions(self, input_ids: Tensor, attention_mask: Tensor, vision: VisionInput | None) -> tuple[Tensor, Tensor]:
        images = videos = seconds = None
        if vision is not None:
            images, videos = vision.grid_thw[~vision.is_video], vision.grid_thw[vision.is_video]
            if self.tokens_per_second is not None:
                seconds = vision.seconds_per_patch[vision.is_video]
        return mrope_position_ids(
            input_ids,
            attention_mask,
            images,
            videos,
            seconds,
            image_token_id=self.image_token_id,
            video_token_id=self.video_token_id,
            spatial_merge_size=self.geometry.merge_size,
            tokens_per_second=self.tokens_per_second or 1,
        )

    def language_model(self, model: PreTrainedModel) -> nn.Module:
        return model.model.language_model

    def parts(self, model: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
        tower, decoder = model.model.visual, model.model.language_model
        merger, tables = list(tower.merger.parameters()), (decoder.embed_tokens, model.get_output_embeddings())
        # Tied, input and output are one parameter.
        embeddings = list({id(p): p for table in tables if table is not None for p in table.parameters()}.values())
        rest = {id(parameter) for parameter in (*merger, *embeddings)}
        return {
            "vision_tower": [p for p in tower.parameters() if id(p) not in rest],
            "merger": merger,
            "embeddings": embeddings,
            "language_model": [p for p in decoder.parameters() if id(p) not in rest],
        }

    def blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return [*model.model.visual.blocks, *model.model.language_model.layers]

    def vision_parameters(self, model: PreTrainedModel) -> Iterator[nn.Parameter]:
        return model.model.visual.parameters()

    def encode_vision(self, model: PreTrainedModel, vision: VisionInput) -> Tensor:
        tower = model.model.visual
        indices = segment_indices(vision.grid_thw.tolist(), tower, vision.patches.device)
        pixels = self._normalized(vision.patches, tower)
        return tower(pixels, grid_thw=vision.grid_thw, segment_indices=indices).pooler_output

    def dummy_vision(self, device: torch.device) -> VisionInput:
        merge = self.geometry.merge_size
        values = 3 * self.geometry.temporal_patch_size * self.geometry.patch_size**2
        return VisionInput(
            patches=torch.zeros(merge**2, values, dtype=torch.uint8, device=device),
            grid_thw=torch.tensor([[1, merge, merge]], device=device),
            is_video=torch.tensor([True], device=device),
            seconds_per_patch=torch.ones(1, device=device),
        )

    def scatter_vision(self, embeddings: Tensor, input_ids: Tensor, features: Tensor) -> Tensor:
        mask = (input_ids == self.image_token_id) | (input_ids == self.video_token_id)
        return embeddings.masked_scatter(mask[..., None], features.to(embeddings.dtype))

    def _normalized(self, patches: Tensor, tower: nn.Module) -> Tensor:
        """uint8 [N, D] -> the tower's dtype, by the processor's own arithmetic: (x - 255 mean) / (255 std)."""
        # One value per patch element: channels are the slowest of its axes.
        repeats = patches.shape[1] // len(self.image_mean)
        mean, std = (
            (torch.tensor(values, device=patches.device) * 255).repeat_interleave(repeats)
            for values in (self.image_mean, self.image_std)
        )
        return ((patches.float() - mean) / std).to(next(tower.parameters()).dtype)
