"""One packed row [prompt0 | c00 .. c0G | prompt1 | c10 ..]: each completion attends to its prompt and itself.

The prompt of a group is computed once, not once per completion. The row has no padding and needs no mask; positions
restart at the prompt's end for every completion. The layout travels as a keyword of the language model's forward, as
nested tuples of integers, because keywords reach the attention function through gradient checkpointing and adapters
while a context variable or a module attribute does not.

Shapes: G completions per prompt, P prompt tokens, C completion tokens, N predicted tokens, Hq and Hkv attention heads,
D head size, L tokens of the packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from lightning_modules.policy.group_cache import GroupCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "shared_prefix_sdpa"
"""No "flash" or "flex" in the name: transformers switches behavior on those."""

Layout = tuple[tuple[int, tuple[int, ...]], ...]
"""Per group: prompt tokens P and the input tokens of each completion (one less than its tokens)."""

PADDING_WASTE = 1.25
"""Completions share a bucket while padding them to the longest costs at most this factor."""


class PackIndex(NamedTuple):
    """Where things stand in the packed row."""

    layout: Layout
    rows: Tensor
    """int64 [N]: for each completion token, in order, the row whose hidden state predicts it."""


def pack_index(prompt_lengths: Sequence[int], completion_lengths: Sequence[Sequence[int]]) -> PackIndex:
    """Layout and predicting rows of groups with the given token counts (end-of-sequence included, each >= 1).

    The last prompt row predicts all first tokens of its group; the last token of a completion predicts nothing and is
    not part of the row.
    """
    layout, rows, offset = [], [], 0
    for prompt_length, lengths in zip(prompt_lengths, completion_lengths, strict=True):
        assert prompt_length > 0 and all(length > 0 for length in lengths), (prompt_length, lengths)
        start = offset + prompt_length
        for length in lengths:
            rows.append(torch.tensor([offset + prompt_length - 1]))
            rows.append(torch.arange(start, start + length - 1))
            start += length - 1
        layout.append((prompt_length, tuple(length - 1 for length in lengths)))
        offset = start
    return PackIndex(tuple(layout), torch.cat(rows))


class _Buckets(NamedTuple):
    """Completions of one group sorted into rectangles of similar length."""

    shapes: tuple[tuple[int, int], ...]
    """(completions, padded length) of each bucket."""
    gather: Tensor | None
    """int64: packed place of every bucket cell; None when the packed order already is one rectangle."""
    scatter: Tensor | None
    """int64: bucket cell of every packed place."""


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # a cached inference tensor could not be saved for backward later
def _buckets(lengths: tuple[int, ...], device: torch.device) -> _Buckets:
    if len(set(lengths)) == 1:
        return _Buckets(((len(lengths), lengths[0]),), None, None)
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    buckets: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        members = buckets[-1] if buckets else []
        real = sum(lengths[i] for i in members) + lengths[index]
        if members and (len(members) + 1) * lengths[members[0]] <= PADDING_WASTE * real:
            members.append(index)
        else:
            buckets.append([index])
    gather, scatter, cell = [], torch.empty(starts[-1], dtype=torch.long), 0
    for members in buckets:
        longest = lengths[members[0]]
        for index in members:
            # Cells beyond a completion's end repeat its last token; causality keeps them out of every real row.
            gather.append(starts[index] + torch.arange(longest).clamp(max=lengths[index] - 1))
            scatter[starts[index] : starts[index + 1]] = cell + torch.arange(lengths[index])
            cell += longest
    shapes = tuple((len(members), lengths[members[0]]) for members in buckets)
    return _Buckets(shapes, torch.cat(gather).to(device), scatter.to(device))


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    shared_prefix: Layout | None = None,
    group_cache: GroupCache | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention function for transformers' registry; without layout or group cache it is the stock one.

    Args:
        module: the attention layer that calls.
        query: [1, Hq, L, D].
        key: [1, Hkv, L, D].
        value: [1, Hkv, L, D].
        attention_mask: must be None with a layout.
        scaling: factor on the scores.
        dropout: attention dropout.
        shared_prefix: the layout of the packed row, in training.
        group_cache: the cache that holds prompts once, in sampling; key and value are then the completions' own.
        kwargs: what the stock function takes.

    Returns:
        [1, L, Hq, D] and None.
    """
    if group_cache is not None:
        return group_cache.attend(query, key, value, module.layer_idx, scaling), None
    if shared_prefix is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    sizes = [size for prompt, lengths in shared_prefix for size in (prompt, sum(lengths))]
    assert attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2] == sum(sizes), (
        f"a packed row takes no mask and no cache: {query.shape}, {key.shape}, layout of {sum(sizes)} tokens"
    )
    if query.dtype != value.dtype:  # under autocast the rotation leaves float32, and causal biases bypass autocast
        query, key = query.to(value.dtype), key.to(value.dtype)
    grouped = query.shape[1] != key.shape[1]
    if grouped and not _has_grouped_kernel(query):
        repeats = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), False
    options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": grouped}

    pieces = []
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for _, lengths in shared_prefix:
        prompt_query, prompt_key, prompt_value = next(parts)
        pieces.append(scaled_dot_product_attention(prompt_query, prompt_key, prompt_value, is_causal=True, **options))
        completions = next(parts)
        if sum(lengths):
            pieces.append(_completion_attention(lengths, (prompt_key, prompt_value), completions, options))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _has_grouped_kernel(query: Tensor) -> bool:
    """Whether grouped-query attention has a fused kernel here; only the quadratic-memory fallback would be left."""
    if not query.is_cuda:
        return True
    return query.dtype != torch.float32 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _completion_attention(
    lengths: tuple[int, ...], prompt: tuple[Tensor, Tensor], completions: Sequence[Tensor], options: dict
) -> Tensor:
    """[1, Hq, sum(lengths), D]: completions of one group against [prompt; own tokens so far], bucket by bucket."""
    buckets = _buckets(tuple(length for length in lengths if length), prompt[0].device)
    cells = [tensor[0] if buckets.gather is None else tensor[0][:, buckets.gather] for tensor in completions]
    sizes = [count * longest for count, longest in buckets.shapes]
    outputs = []
    for (count, longest), *bucket in zip(buckets.shapes, *(cell.split(sizes, dim=1) for cell in cells), strict=True):
        query, key, value = (tensor.unflatten(1, (count, longest)).transpose(0, 1) for tensor in bucket)
        key = torch.cat([prompt[0].expand(count, -1, -1, -1), key], dim=2)
        value = torch.cat([prompt[1].expand(count, -1, -1, -1), value], dim=2)
        bias = causal_lower_right(longest, key.shape[2])
        output = scaled_dot_product_attention(query, key, value, attn_mask=bias, **options)
        outputs.append(output.transpose(0, 1).flatten(1, 2))
    output = torch.cat(outputs, dim=1)
    return (output if buckets.scatter is None else output[:, buckets.scatter])[None]


def use_shared_prefix_attention(model: PreTrainedModel) -> None:
    """Give the text model of a transformers model this attention; the vision tower keeps its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
    # Without a mask function under the same name, padding masks would be dropped in silence.
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": ATTENTION_NAME})
