"""The vision tower of Qwen2.5-VL and Qwen2-VL, faster and the same: weights, modules and checkpoints stay as they are.

Two things are slow in the stock tower without flash attention. The patch embedding is a convolution whose kernel is as
large as its input, which is a matrix product; and attention loops over windows of which there are hundreds. Here
windows of one length are one batched attention call.

Shapes: N vision patches, E hidden size of the tower, Hv heads, W windows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2

Tower = qwen2_5.Qwen2_5_VisionTransformerPretrainedModel | qwen2.Qwen2VisionTransformerPretrainedModel


class SegmentIndex(NamedTuple):
    """How a row of segments (windows, or whole temporal patches) becomes batches of equal length."""

    segments: int
    """How many; tells which index belongs to a layer."""
    shapes: tuple[tuple[int, int], ...]
    """(segments, length) of each batch."""
    gather: Tensor | None
    """int64 [N]: patches sorted by segment length; None when all lengths agree."""
    scatter: Tensor | None
    """int64 [N]: its inverse."""


def segment_indices(grid_thw: list[list[int]], tower: Tower, device: torch.device) -> tuple[SegmentIndex, ...]:
    """Indices for the full and the windowed layers of one tower call over items of the given patch grids."""
    window = getattr(tower, "window_size", None)
    side = None if window is None else window // tower.spatial_merge_size // tower.patch_size
    grids = tuple(tuple(grid) for grid in grid_thw)
    indices = [_index(_frame_lengths(grids), device)]
    if side is not None:
        indices.append(_index(_window_lengths(grids, side, tower.spatial_merge_size), device))
    return tuple(indices)


def _frame_lengths(grids: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(height * width for frames, height, width in grids for _ in range(frames))


def _window_lengths(grids: tuple[tuple[int, ...], ...], side: int, merge: int) -> tuple[int, ...]:
    """Patches of each window in the tower's order: windows of side x side merged patches, cut off at the edges."""
    lengths: list[int] = []
    for frames, height, width in grids:
        heights, widths = _tiles(height // merge, side), _tiles(width // merge, side)
        lengths += [h * w * merge**2 for h in heights for w in widths] * frames
    return tuple(lengths)


def _tiles(extent: int, side: int) -> list[int]:
    return [min(side, extent - start) for start in range(0, extent, side)]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached inference tensor could not be saved for backward later
def _index(lengths: tuple[int, ...], device: torch.device) -> SegmentIndex:
    distinct = sorted(set(lengths))
    if len(distinct) == 1:
        return SegmentIndex(len(lengths), ((len(lengths), distinct[0]),), None, None)
    all_lengths = torch.tensor(lengths)
    starts = all_lengths.cumsum(0) - all_lengths
    gather = torch.cat(
        [(starts[all_lengths == length][:, None] + torch.arange(length)).flatten() for length in distinct]
    )
    shapes = tuple((lengths.count(length), length) for length in distinct)
    return SegmentIndex(len(lengths), shapes, gather.to(device), gather.argsort().to(device))


class _LinearPatches(nn.Module):
    """Mixin: the patch embedding as the matrix product that it is; the weight keeps its convolution shape."""

    proj: nn.Conv3d

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight
        return linear(hidden_states.to(weight.dtype), weight.flatten(1))


class LinearPatchEmbed(_LinearPatches, qwen2_5.Qwen2_5_VisionPatchEmbed):
    """Patch embedding of Qwen2.5-VL's tower."""


class LinearQwen2VLPatchEmbed(_LinearPatches, qwen2.PatchEmbed):
    """Patch embedding of Qwen2-VL's tower."""


class _BatchedSegments(nn.Module):
    """Mixin: attention over all segments of one length at once."""

    config: Any
    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    scaling: float
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        *args,
        segment_indices: tuple[SegmentIndex, ...] | None = None,
        **kwargs,
    ) -> Tensor:
        if segment_indices is None or position_embeddings is None or self.config._attn_implementation != "sdpa":
            return super().forward(hidden_states, cu_seqlens, position_embeddings, *args, **kwargs)
        index = next(index for index in segment_indices if index.segments == cu_seqlens.shape[0] - 1)
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # [N, Hv, E / Hv]
        query, key = self.rotate(query, key, *position_embeddings)
        if index.gather is not None:
            query, key, value = (tensor[index.gather] for tensor in (query, key, value))
        sizes = [count * length for count, length in index.shapes]
        outputs = []
        for shape, *batch in zip(index.shapes, *(t.split(sizes) for t in (query, key, value)), strict=True):
            query, key, value = (tensor.unflatten(0, shape).transpose(1, 2) for tensor in batch)  # [W, Hv, length, .]
            output = scaled_dot_product_attention(query, key, value, scale=self.scaling)
            outputs.append(output.transpose(1, 2).flatten(0, 1).flatten(1))
        output = torch.cat(outputs)
        return self.proj(output if index.scatter is None else output[index.scatter])


class BatchedVisionAttention(_BatchedSegments, qwen2_5.Qwen2_5_VLVisionAttention):
    """Attention of Qwen2.5-VL's tower."""

    rotate = staticmethod(qwen2_5.apply_rotary_pos_emb_vision)


class BatchedQwen2VLVisionAttention(_BatchedSegments, qwen2.VisionAttention):
    """Attention of Qwen2-VL's tower."""

    rotate = staticmethod(qwen2.apply_rotary_pos_emb_vision)


_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    qwen2_5.Qwen2_5_VisionPatchEmbed: LinearPatchEmbed,
    qwen2_5.Qwen2_5_VLVisionAttention: BatchedVisionAttention,
    qwen2.PatchEmbed: LinearQwen2VLPatchEmbed,
    qwen2.VisionAttention: BatchedQwen2VLVisionAttention,
}


def accelerate(tower: nn.Module) -> None:
    """Give the tower's layers the faster forward in place, without touching a parameter or a name."""
    for module in tower.modules():
        if type(module) in _REPLACEMENTS:
            module.__class__ = _REPLACEMENTS[type(module)]
