"""Attention of a group's completions to their prompt and to their own tokens so far, in two parts with one softmax.

Joining a prompt's keys with those of each completion would copy them once per completion and need a mask of P + C
columns. Instead, all tokens of the group attend to the one prompt, without a mask, and each completion attends to
itself, causally. Each part gives its output o_i and the logarithm l_i of its softmax's denominator, and with
l = log(exp(l_1) + exp(l_2)) the whole is exp(l_1 - l) o_1 + exp(l_2 - l) o_2. The backward pass of a fused kernel needs
only the output and l of the whole to compute the gradients of a part (Liu et al. 2023, Ring Attention, arXiv
2310.01889), so neither part is kept.

Shapes: G completions, N tokens of all completions, P prompt tokens, Hq and Hkv attention heads, D head size, L and M
tokens of a kernel's queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention

PADDING_WASTE = 1.25
"""Completions share a bucket while padding them to the longest costs at most this factor."""
EFFICIENT_ROUNDING = 32
"""The memory-efficient kernel of CUDA wants room in l for a multiple of so many queries."""

Grads = tuple[Tensor, Tensor, Tensor]


def group_attention(
    query: Tensor, key: Tensor, value: Tensor, prompt: tuple[Tensor, Tensor], lengths: tuple[int, ...], *, scale: float
) -> Tensor:
    """[1, Hq, N, D]: what the tokens of completions take from their prompt and from their own tokens so far.

    Args:
        query: [1, Hq, N, D].
        key: [1, Hkv, N, D].
        value: [1, Hkv, N, D].
        prompt: its keys and values, each [1, Hkv, P, D].
        lengths: tokens of each completion, in the order of the row; they add up to N.
        scale: factor on the scores.
    """
    return _GroupAttention.apply(query, key, value, *prompt, lengths, scale)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """[1, Hq, P, D]: what the tokens of a prompt take from it; `query`, `key` and `value` as in `group_attention`."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda and not _has_flash(query):  # else only a kernel of quadratic memory is left
        key, value, grouped = _repeated(key, query), _repeated(value, query), False
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)


class _GroupAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, prompt_key, prompt_value, lengths, scale):
        buckets = _buckets(lengths, query.device)
        output, normalizer = _attend(query, prompt_key, prompt_value, causal=False, scale=scale)
        cells = _cells(buckets, query, key, value)
        parts = [_attend(queries, keys, values, causal=True, scale=scale) for queries, keys, values in cells]
        own, own_normalizer = (_row(buckets, part) for part in zip(*parts, strict=True))
        whole = torch.logaddexp(normalizer, own_normalizer)
        output = output * (normalizer - whole).exp()[..., None] + own * (own_normalizer - whole).exp()[..., None]
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, prompt_key, prompt_value, output, whole)
        ctx.buckets, ctx.scale = buckets, scale
        return output

    @staticmethod
    @once_differentiable  # its annotations hide the name of ctx
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, prompt_key, prompt_value, output, whole = ctx.saved_tensors
        options, grad = {"scale": ctx.scale}, grad.contiguous()
        from_prompt = _attend_backward(grad, query, prompt_key, prompt_value, output, whole, causal=False, **options)
        # Cells of padding repeat a token, whose gradient must count once.
        upstream = _cells(ctx.buckets, grad, mask_padding=True)
        rest = _cells(ctx.buckets, query, key, value, output, whole[..., None])
        parts = [
            _attend_backward(grads, queries, keys, values, outputs, wholes[..., 0], causal=True, **options)
            for (grads,), (queries, keys, values, outputs, wholes) in zip(upstream, rest, strict=True)
        ]
        grad_query, grad_key, grad_value = (_row(ctx.buckets, part) for part in zip(*parts, strict=True))
        return from_prompt[0] + grad_query, grad_key, grad_value, *from_prompt[1:], None, None


class _Buckets(NamedTuple):
    """Completions of one group sorted into rectangles of similar length."""

    shapes: tuple[tuple[int, int], ...]
    """(completions, padded length) of each bucket."""
    gather: Tensor | None
    """int64: packed place of every bucket cell; None when the packed order already is one rectangle."""
    scatter: Tensor | None
    """int64: bucket cell of every packed place."""
    padding: Tensor | None
    """bool: cells beyond the end of their completion."""


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # a cached inference tensor could not be saved for backward later
def _buckets(lengths: tuple[int, ...], device: torch.device) -> _Buckets:
    lengths = tuple(length for length in lengths if length)
    if len(set(lengths)) == 1:
        return _Buckets(((len(lengths), lengths[0]),), None, None, None)
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
    padding = torch.ones(cell, dtype=torch.bool).index_fill(0, scatter, False)
    return _Buckets(shapes, torch.cat(gather).to(device), scatter.to(device), padding.to(device))


def _cells(buckets: _Buckets, *rows: Tensor, mask_padding: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Rows [1, H, N, X] as rectangles [completions, H, padded length, X], bucket by bucket."""
    cells = [row[0] if buckets.gather is None else row[0][:, buckets.gather] for row in rows]
    if mask_padding and buckets.padding is not None:
        cells = [cell.masked_fill(buckets.padding[:, None], 0) for cell in cells]
    sizes = [count * longest for count, longest in buckets.shapes]
    for shape, *bucket in zip(buckets.shapes, *(cell.split(sizes, dim=1) for cell in cells), strict=True):
        yield tuple(tensor.unflatten(1, shape).transpose(0, 1) for tensor in bucket)


def _row(buckets: _Buckets, parts: tuple[Tensor, ...]) -> Tensor:
    """Rectangles [completions, H, padded length, ...] back as one row [1, H, N, ...]."""
    cells = torch.cat([part.transpose(0, 1).flatten(1, 2) for part in parts], dim=1)
    return (cells if buckets.scatter is None else cells[:, buckets.scatter])[None]


def _attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output [., Hq, L, D] and the logarithm of the softmax's denominator [., Hq, L] of a fused kernel."""
    aten = torch.ops.aten
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, is_causal=causal, scale=scale)
    if _has_flash(query):
        return aten._scaled_dot_product_flash_attention(query, key, value, is_causal=causal, scale=scale)[:2]
    key, value = (_repeated(tensor, query) for tensor in (key, value))
    output, normalizer, *_ = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, compute_log_sumexp=True, is_causal=causal, scale=scale
    )
    return output, normalizer[..., : query.shape[2]]


def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    normalizer: Tensor,
    *,
    causal: bool,
    scale: float,
) -> Grads:
    """Gradients of queries, keys and values where these keys are a part of those that `output` is the result of."""
    aten = torch.ops.aten
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, output, normalizer, 0.0, causal, scale=scale
        )
    normalizer = normalizer.contiguous()
    seed = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of dropout, which there is none of
    if _has_flash(query):
        sizes = (None, None, query.shape[2], key.shape[2])
        return aten._scaled_dot_product_flash_attention_backward(
            grad, query, key, value, output, normalizer, *sizes, 0.0, causal, seed, seed[:0], scale=scale
        )
    heads, offset = key.shape[1], seed.new_zeros(()).long()
    repeated = [_repeated(tensor, query) for tensor in (key, value)]
    normalizer = pad(normalizer, (0, -normalizer.shape[2] % EFFICIENT_ROUNDING))
    mask = (True, True, True, False)
    grad_query, *grads, _ = aten._scaled_dot_product_efficient_attention_backward(
        grad, query, *repeated, None, output, normalizer, offset, offset, 0.0, mask, causal, scale=scale
    )
    grad_key, grad_value = (tensor.unflatten(1, (heads, -1)).sum(dim=2) for tensor in grads)
    return grad_query, grad_key, grad_value


def _has_flash(query: Tensor) -> bool:
    return query.dtype != torch.float32 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _repeated(tensor: Tensor, query: Tensor) -> Tensor:
    """Keys or values once per query head: the memory-efficient kernel knows no grouped queries."""
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1)
