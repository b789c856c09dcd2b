"""From logits to a sampled token.

Shapes: S sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def filtered_logprobs(
    logits: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Log-probabilities of the distribution that is sampled from, -inf where a filter removed the token.

    The filters apply to softmax(logits / temperature), each to what the one before it left: top_k keeps the k most
    likely tokens, top_p the smallest set of most likely tokens whose probability reaches top_p (at least one), min_p
    the tokens with at least min_p times the largest probability. What remains is normalized.

    Args:
        logits: float [S, V]; -inf bans a token.
        temperature: > 0.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.

    Returns:
        float [S, V].
    """
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    if top_k and top_k < logprobs.shape[-1]:
        kth = logprobs.topk(top_k, dim=-1).values[:, -1:]
        logprobs = _renormalized(logprobs.masked_fill(logprobs < kth, -torch.inf))
    if top_p < 1:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        probabilities = ordered.exp()
        # A token goes when the tokens before it already reach top_p; the first has none before it.
        removed = probabilities.cumsum(dim=-1) - probabilities >= top_p
        removed = torch.zeros_like(removed).scatter(-1, order, removed)
        logprobs = _renormalized(logprobs.masked_fill(removed, -torch.inf))
    if min_p > 0:
        threshold = logprobs.amax(dim=-1, keepdim=True) + torch.log(torch.tensor(min_p))
        logprobs = _renormalized(logprobs.masked_fill(logprobs < threshold, -torch.inf))
    return logprobs


def _renormalized(logprobs: Tensor) -> Tensor:
    return logprobs - logprobs.logsumexp(dim=-1, keepdim=True)


def inverse_cdf_sample(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative probability exceeds a uniform number: one draw per row, no generator.

    The random numbers are given, so a completion depends only on its own numbers and not on the batch it is sampled
    in. The cumulative sum is in float64: over a large vocabulary float32 would round rare tokens away.

    Args:
        logprobs: float [S, V], normalized.
        uniforms: float64 [S] in [0, 1).

    Returns:
        int64 [S]; never a token of probability 0. Where log-probabilities are not numbers, the last token.
    """
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    # The sum is 1 only up to rounding; scaling the draw keeps it below the last entry.
    thresholds = uniforms.double()[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1)
    # Nothing exceeds a threshold that is not a number. An index beyond the vocabulary would end a CUDA process.
    return tokens.clamp(max=logprobs.shape[1] - 1)
