"""What the policy needs to know of a family of vision-language models. `loading.FAMILIES` lists those there are.

Weights, modules and checkpoints are those of transformers; a family says how features enter the embeddings and how
positions run. Its decoder must take `inputs_embeds` and explicit `position_ids` and need nothing else of the media.

Shapes: B rows, L tokens, N vision patches, M merged vision tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, device, nn

from datamodules.types import VisionInput
from datamodules.video.types import PatchGeometry

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@runtime_checkable
class ModelFamily(Protocol):
    """Adapter between a transformers model and the policy; made of the model and its processor."""

    geometry: PatchGeometry
    """How frames are cut into patches."""
    vision_token_ids: tuple[int, ...]
    """Tokens that a completion must never hold."""

    def positions(self, input_ids: Tensor, attention_mask: Tensor, vision: VisionInput | None) -> tuple[Tensor, Tensor]:
        """Positions int64 [3, B, L] and next position int64 [B] of a batch [B, L] padded on either side."""
        ...

    def encode_vision(self, model: PreTrainedModel, vision: VisionInput) -> Tensor:
        """Features [M, H] of all media in one tower call, images and videos in order of appearance."""
        ...

    def scatter_vision(self, embeddings: Tensor, input_ids: Tensor, features: Tensor) -> Tensor:
        """Embeddings [B, L, H] with features [M, H] in place of the media tokens of input_ids [B, L]."""
        ...

    def dummy_vision(self, device: device) -> VisionInput:
        """The smallest clip there is, for batches without media (see `Policy.embed`)."""
        ...

    def language_model(self, model: PreTrainedModel) -> nn.Module:
        """The decoder without output projection."""
        ...

    def parts(self, model: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
        """Parameters of vision_tower, merger, embeddings and language_model; together they are the model."""
        ...

    def blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        """What is gathered at a time where the model is sharded: vision blocks and decoder layers."""
        ...

    def vision_parameters(self, model: PreTrainedModel) -> Iterator[nn.Parameter]:
        """Parameters between the pixels and the language model."""
        ...
