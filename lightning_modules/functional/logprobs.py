"""Log-probabilities of given tokens straight from hidden states, in chunks, with a hand-written backward.

The [N, V] logits of a long completion batch would be the largest tensor of the whole step. Here at most
`chunk_size` rows of them, or columns of the same total size, exist at a time; the backward computes them again instead
of keeping them.

Shapes: N token positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokenStatistics(NamedTuple):
    """Log-probability, entropy and rank of each of N given tokens."""

    logprobs: Tensor
    """float32 [N], differentiable."""
    entropy: Tensor
    """float32 [N], entropy of the distribution at that position in nats; not differentiable."""
    is_top: Tensor
    """bool [N], true where the token is the most likely one."""


def token_statistics(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_size: int = 512
) -> TokenStatistics:
    """log softmax(hidden @ weight.T / temperature)[target] and what else `TokenStatistics` holds, chunk by chunk.

    The derivative with respect to the scaled logits z is (onehot(target) - softmax(z)) * upstream.

    Args:
        hidden: [N, H], the states that predict the targets.
        weight: [V, H], the output projection (no bias).
        targets: int64 [N].
        temperature: divides the logits.
        chunk_size: rows of logits that exist at a time; the backward keeps to the same number of elements.
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
        normalizer, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        is_top = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        count = max(chunk_size // 2, 1)  # logits and their exponentials exist side by side
        for start in range(0, len(hidden), count):
            rows = slice(start, start + count)
            logits = _logits(hidden[rows], head, temperature)
            chosen, top = logits.gather(1, targets[rows, None]), logits.amax(dim=-1, keepdim=True)
            is_top[rows] = (chosen >= top).squeeze(1)
            exponentials = logits.sub_(top).exp()
            total = exponentials.sum(dim=-1)
            normalizer[rows] = total.log() + top.squeeze(1)
            logprobs[rows] = chosen.squeeze(1) - normalizer[rows]
            # The entropy is the normalizer minus the mean logit, both relative to the top logit here.
            entropy[rows] = total.log() - exponentials.mul_(logits).sum(dim=-1) / total
            del logits, exponentials  # otherwise they would still exist while the next chunk is computed
        ctx.save_for_backward(hidden, weight, targets, normalizer)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.mark_non_differentiable(entropy, is_top)
        return logprobs, entropy, is_top

    @staticmethod
    @once_differentiable  # its annotations hide the name of ctx
    def backward(ctx, grad_logprobs, _grad_entropy, _grad_is_top):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, targets, normalizer = ctx.saved_tensors
        head = weight.to(hidden.dtype)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        # The normalizers are known, so chunks can be columns of all rows instead of rows. Each then completes its part
        # of the weight's gradient, and only the hidden states' gradient, the smaller of the two, is summed over chunks.
        # The sum is in float32: in bfloat16 it would lose small terms.
        grad_hidden = torch.zeros_like(hidden, dtype=normalizer.dtype) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        # The upstream factor scales rows; scaling the states instead of the logits' gradient is V / H times cheaper.
        scale = (grad_logprobs / -ctx.temperature)[:, None]
        scaled = (hidden * scale).to(hidden.dtype)
        width = -(-ctx.chunk_size * len(weight) // max(len(hidden), 1))
        for start in range(0, len(weight), width):
            columns = slice(start, start + width)
            grad = _logits(hidden, head[columns], ctx.temperature).sub_(normalizer[:, None]).exp_()
            place = targets - start
            inside = (place >= 0) & (place < grad.shape[1])
            grad.scatter_add_(1, place.clamp(0, grad.shape[1] - 1)[:, None], -inside[:, None].to(grad.dtype))
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden += grad @ head[columns]
            if grad_weight is not None:
                grad_weight[columns] = grad.T @ scaled
            del grad  # as in the forward
        return None if grad_hidden is None else (grad_hidden * scale).to(hidden.dtype), grad_weight, None, None, None
