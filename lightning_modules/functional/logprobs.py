"""Log-probabilities of given tokens straight from hidden states, in chunks, with a hand-written backward.

The [N, V] logits of a long completion batch would be the largest tensor of the whole step. Here at most
`chunk_size` rows of them exist at a time; the backward computes them again instead of keeping them.

Shapes: N token positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokenStatistics(NamedTuple):
    """What is known about each of N given tokens."""

    logprobs: Tensor
    """float32 [N], differentiable."""
    entropy: Tensor
    """float32 [N], entropy of the distribution at that position in nats; not differentiable."""
    is_top: Tensor
    """bool [N], the token is the most likely one."""


def token_statistics(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_size: int = 1024
) -> TokenStatistics:
    """log softmax(hidden @ weight.T / temperature)[target], with entropy and hit, in memory of one chunk.

    The derivative with respect to the scaled logits z is (onehot(target) - softmax(z)) * upstream.

    Args:
        hidden: [N, H], the states that predict the targets.
        weight: [V, H], the output projection (no bias).
        targets: int64 [N].
        temperature: divides the logits.
        chunk_size: rows of logits that exist at a time.
    """
    assert hidden.ndim == 2 and weight.ndim == 2 and targets.shape == hidden.shape[:1], (
        hidden.shape,
        weight.shape,
        targets.shape,
    )
    # The backward runs outside of autocast, so the dtype of the products is settled here, once for both directions.
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        outputs = _ChunkedTokenStatistics.apply(hidden.to(dtype), weight, targets, temperature, chunk_size)
    return TokenStatistics(*outputs)


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """[rows, V] in at least float32: a softmax over a large vocabulary in bfloat16 loses the answer."""
    logits = hidden @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


class _ChunkedTokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, chunk_size):
        precision = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        head = weight.to(hidden.dtype)
        logprobs = torch.empty(len(hidden), dtype=precision, device=hidden.device)
        normaliser, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        is_top = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = _logits(hidden[rows], head, temperature)
            normaliser[rows] = logits.logsumexp(dim=-1)
            logprobs[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - normaliser[rows]
            is_top[rows] = logits.argmax(dim=-1) == targets[rows]
            # The entropy is the normaliser minus the mean logit.
            probabilities = (logits - normaliser[rows, None]).exp_()
            entropy[rows] = normaliser[rows] - probabilities.mul_(logits).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.mark_non_differentiable(entropy, is_top)
        return logprobs, entropy, is_top

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, _grad_entropy, _grad_is_top):
        hidden, weight, targets, normaliser = ctx.saved_tensors
        head = weight.to(hidden.dtype)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Chunks are added up in float32: a bfloat16 sum would lose the small ones.
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if need_weight else None
        for start in range(0, len(hidden), ctx.chunk_size):
            rows = slice(start, start + ctx.chunk_size)
            grad = _logits(hidden[rows], head, ctx.temperature)
            grad.sub_(normaliser[rows, None]).exp_().neg_()
            grad.scatter_add_(1, targets[rows, None], torch.ones_like(grad[:, :1]))
            grad.mul_(grad_logprobs[rows, None] / ctx.temperature)
            grad = grad.to(hidden.dtype)
            if need_hidden:
                grad_hidden[rows] = grad @ head
            if need_weight:
                grad_weight += grad.T @ hidden[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None
