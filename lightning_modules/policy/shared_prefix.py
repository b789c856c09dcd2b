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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_modules.policy.group_attention import causal_attention, group_attention
from lightning_modules.policy.group_cache import GroupCache
from lightning_modules.policy.prompt_state import PromptState
from rewards.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "shared_prefix_sdpa"
"""No "flash" or "flex" in the name: transformers switches behavior on those."""

Layout = tuple[tuple[int, tuple[int, ...]], ...]
"""Per group: prompt tokens P and the input tokens of each completion (one less than its tokens)."""


class PackIndex(NamedTuple):
    """Where things stand in the packed row."""

    layout: Layout
    rows: Tensor
    """int64 [N]: for each completion token, in order, the row whose hidden state predicts it."""


def pack_index(
    prompt_lengths: Sequence[int], completion_lengths: Sequence[Sequence[int]], *, prompts_in_row: bool = True
) -> PackIndex:
    """Layout and predicting rows of groups with the given token counts (end-of-sequence included, each >= 1).

    The last prompt row predicts all first tokens of its group; the last token of a completion predicts nothing and is
    not part of the row. A row of completions alone follows the last rows of all prompts, which went before it.
    """
    layout, rows, offset = [], [torch.empty(0, dtype=torch.long)], 0 if prompts_in_row else len(prompt_lengths)
    for group, (prompt_length, lengths) in enumerate(zip(prompt_lengths, completion_lengths, strict=True)):
        assert prompt_length > 0 and all(length > 0 for length in lengths), (prompt_length, lengths)
        start = offset + prompt_length * prompts_in_row
        last_of_prompt = start - 1 if prompts_in_row else group
        for length in lengths:
            rows.append(torch.tensor([last_of_prompt]))
            rows.append(torch.arange(start, start + length - 1))
            start += length - 1
        layout.append((prompt_length, tuple(length - 1 for length in lengths)))
        offset = start
    return PackIndex(tuple(layout), torch.cat(rows))


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    shared_prefix: Layout | None = None,
    prompts: PromptState | None = None,
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
        prompts: collects the keys and values of a row of prompts alone, or gives them to a row of completions alone.
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
    if query.dtype != value.dtype:  # under autocast the rotation leaves float32, and these kernels bypass autocast
        query, key = query.to(value.dtype), key.to(value.dtype)
    known = None
    if prompts is not None and any(lengths for _, lengths in shared_prefix):
        known = prompts.of_layer(module.layer_idx)
    elif prompts is not None:
        prompts.add(module.layer_idx, key, value)
    sizes = [size for prompt, lengths in shared_prefix for size in (0 if known else prompt, sum(lengths))]
    assert attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2] == sum(sizes), (
        f"a packed row takes no mask and no cache: {query.shape}, {key.shape}, layout of {sum(sizes)} tokens"
    )
    pieces = []
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for group, (_, lengths) in enumerate(shared_prefix):
        prompt_query, prompt_key, prompt_value = next(parts)
        if known is None:
            pieces.append(causal_attention(prompt_query, prompt_key, prompt_value, scale=scaling).transpose(1, 2))
        else:
            prompt_key, prompt_value = known[group]
        own_query, own_key, own_value = next(parts)
        if sum(lengths):
            prompt = (prompt_key, prompt_value)
            output = group_attention(own_query, own_key, own_value, prompt, lengths, scale=scaling)
            pieces.append(output.transpose(1, 2))
    # A single piece stays the tensor that the kernel keeps for its backward pass.
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)).contiguous(), None


def use_shared_prefix_attention(model: PreTrainedModel) -> None:
    """Give the text model of a transformers model this attention; the vision tower keeps its own.

    Raises:
        UserError: the model was configured with attention dropout.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
    # Without a mask function under the same name, padding masks would be dropped in silence.
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    if dropout := getattr(model.config.get_text_config(), "attention_dropout", 0.0):
        raise UserError(
            f"The model's attention_dropout is {dropout}; set it to 0 in its config.json: sampling knows none."
        )
    model.set_attn_implementation({"text_config": ATTENTION_NAME})
