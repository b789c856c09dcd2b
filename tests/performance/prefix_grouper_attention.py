"""A GRPO group with PrefixGrouper: https://github.com/johncaged/PrefixGrouper (Liu et al. 2025, arXiv 2506.05433).

The package computes a prompt once and gives every completion a copy of its keys and values, so that attention runs as
prompts alone and rows [prompt | completion] with queries of the completion only.

Shapes: L tokens of the group's row, D head size.
"""

from __future__ import annotations

from typing import Any

from prefix_grouper import PrefixGrouper
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

PREFIX_GROUPER_ATTENTION = "prefix_grouper"
"""Its name in transformers' registry."""


def prefix_grouper_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    prefix_grouper: PrefixGrouper,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' registry: queries [1, heads, L, D], output [1, L, heads, D] and None."""
    return prefix_grouper.forward(_attend, query, key, value, scaling), None


def _attend(query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor, scale: float) -> Tensor:
    """[rows, L, heads, D] of queries at the end of the keys; causality alone hides the padding on the right."""
    if query.shape[2] == key.shape[2]:
        causal: dict[str, Any] = {"is_causal": True}
    else:
        causal = {"attn_mask": causal_lower_right(query.shape[2], key.shape[2])}
    return scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True, **causal).transpose(1, 2)
