"""The update of a GRPO group by every method: forward and backward passes of the same loss.

Shapes: G completions, S completions of one backward pass, C completion tokens (longest), H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from prefix_grouper import PrefixGrouper
from torch import Tensor
from torch.nn.functional import pad

from datamodules.types import EncodedPrompt
from tests.performance.random_models import VIDEO_TOKEN, Models
from tests.performance.repeated_prompt import (
    RepeatedGroup,
    chunked_logprobs,
    masked_logprobs,
    repeated_group,
    repeated_logprobs,
    vision_features,
    vision_once_logprobs,
)

SLICE = 2
"""Completions per backward pass of `ours_sliced`."""

Passes = Iterator[Tensor]
"""Log-probabilities [S, C] of the next completions; their backward pass runs before the next ones are asked for."""


def updates(models: Models, prompt: EncodedPrompt, completions: Sequence[Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Per method a function that adds the group's gradients up and returns its log-probabilities [G, C]."""
    group = repeated_group(models, prompt, completions)
    chunk = models.policy.logprob_chunk_size

    def strongest() -> Tensor:
        return chunked_logprobs(models.stock, group, vision_features(models.stock, group), chunk_size=chunk)

    passes: dict[str, Callable[[], Passes]] = {
        "repeated": lambda: iter([repeated_logprobs(models.stock, group)]),
        "repeated_fast_vision": lambda: iter([repeated_logprobs(models.fast_vision, group)]),
        "vision_once": lambda: iter([vision_once_logprobs(models.stock, group)]),
        "strongest": lambda: iter([strongest()]),
        "strongest_single": lambda: _one_by_one(models, group),
        "prefix_grouper": lambda: iter([_prefix_grouped(models, group)]),
        "ours": lambda: iter([_packed(models, prompt, completions)]),
        "ours_sliced": lambda: _sliced(models, prompt, completions),
    }

    def update(method: str) -> Callable[[], Tensor]:
        return lambda: _with_backward(passes[method](), group.mask)

    return {method: update(method) for method in passes}


def _with_backward(passes: Passes, mask: Tensor) -> Tensor:
    """Gradients of a policy-gradient loss: each completion's log-probabilities weighted by its advantage."""
    advantages = torch.linspace(-1, 1, len(mask), device=mask.device)
    found, start = [], 0
    for logprobs in passes:
        weights = advantages[start : start + len(logprobs), None]
        ((logprobs * weights).sum() / mask.numel()).backward()
        found.append(pad(logprobs.detach(), (0, mask.shape[1] - logprobs.shape[1])))
        start += len(logprobs)
        del logprobs  # its graph must not outlive the pass
    return torch.cat(found)


def _one_by_one(models: Models, group: RepeatedGroup) -> Passes:
    """One completion at a time, the least memory that rows of prompt and completion can take; the tower runs once."""
    model, chunk = models.stock, models.policy.logprob_chunk_size
    features = vision_features(model, group)
    copy = features.detach().requires_grad_()
    for index in range(len(group.mask)):
        yield chunked_logprobs(model, group.completion(index), copy, chunk_size=chunk)
    features.backward(copy.grad)


def _prefix_grouped(models: Models, group: RepeatedGroup) -> Tensor:
    """[G, C]: PrefixGrouper as its documentation wires it up, with what this project has too: one call of the fast
    vision tower, and log-probabilities in chunks."""
    model, start = models.prefix_grouper, group.prompt_tokens
    ids, mask = group.input_ids[:, start:], group.mask
    prompt = group.input_ids[:1, :start]
    whole = torch.ones_like(prompt, dtype=torch.bool)
    grouper = PrefixGrouper.from_ungrouped_masks(whole, mask, len(mask), device=prompt.device)
    row = grouper.concat_input(prompt, whole, ids, mask)
    own = group.position_ids[:, :, start:]
    positions = torch.cat([group.position_ids[:, :1, :start], own[:, mask][:, None]], dim=2)
    embeddings = model.get_input_embeddings()(row)
    features = vision_features(model, group).to(embeddings.dtype)
    hidden = model.model.language_model(
        inputs_embeds=embeddings.masked_scatter((row == VIDEO_TOKEN)[..., None], features),
        position_ids=positions,
        attention_mask={"full_attention": None, "sliding_attention": None},
        use_cache=False,
        prefix_grouper=grouper,
    ).last_hidden_state
    _, _, states, _ = grouper.split_output(hidden, include_prefix_last=1)
    return masked_logprobs(model, states[:, :-1], ids, mask, models.policy.logprob_chunk_size)


def _packed(models: Models, prompt: EncodedPrompt, completions: Sequence[Tensor]) -> Tensor:
    batch = models.policy.pack(models.policy.collate([prompt]).to(models.device), [completions])
    return models.policy.logprobs(batch, temperature=1.0).logprobs


def _sliced(models: Models, prompt: EncodedPrompt, completions: Sequence[Tensor]) -> Passes:
    """As `PolicyUpdate.losses` does: the prompt once, its backward pass after those of all slices."""
    policy = models.policy
    batch = policy.collate([prompt]).to(models.device)
    prompts, _ = policy.run_prompts(policy.pack(batch, [()]))
    for start in range(0, len(completions), SLICE):
        part = policy.pack(batch, [completions[start : start + SLICE]], prompts_in_row=False)
        yield policy.logprobs(part, temperature=1.0, prompts=prompts).logprobs
    prompts.backward_loss().backward()
