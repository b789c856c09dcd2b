"""The usual way to train and sample a GRPO group: G rows [prompt | completion], right-padded, on the stock model.

It is cheaper than the published code in three ways: logits are computed for completion positions only, the pixels are
normalized in advance, and positions are given instead of computed. No attention mask is passed in training, as in the
published code: causality alone hides right padding.

Shapes: G completions, P prompt tokens, C completion tokens (longest), L = P + C, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.types import EncodedPrompt, VisionInput
from lightning_modules.functional.logprobs import token_statistics
from tests.performance.random_models import PAD_TOKEN, SPECIAL_IDS, VIDEO_TOKEN, Models

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration


@dataclass(frozen=True, kw_only=True)
class RepeatedGroup:
    """G right-padded rows on the device, and one copy of the video."""

    input_ids: Tensor
    """int64 [G, L]."""
    position_ids: Tensor
    """int64 [3, G, L]."""
    mask: Tensor
    """bool [G, C]: real completion tokens."""
    prompt_tokens: int
    pixels: Tensor
    """[N, D], normalized."""
    grid_thw: Tensor
    """int64 [1, 3]."""

    def completion(self, index: int) -> RepeatedGroup:
        """The row of one completion, without padding."""
        row, length = slice(index, index + 1), int(self.mask[index].sum())
        end = self.prompt_tokens + length
        return replace(
            self,
            input_ids=self.input_ids[row, :end],
            position_ids=self.position_ids[:, row, :end],
            mask=self.mask[row, :length],
        )


def repeated_group(models: Models, prompt: EncodedPrompt, completions: Sequence[Tensor]) -> RepeatedGroup:
    """Rows for `completions`; empty ones leave the G prompts alone (C = 0)."""
    count, start = len(completions), len(prompt.input_ids)
    longest = max(len(completion) for completion in completions)
    ids = torch.full((count, start + longest), PAD_TOKEN)
    mask = torch.zeros(count, longest, dtype=torch.bool)
    for row, completion in enumerate(completions):
        ids[row, :start] = prompt.input_ids
        ids[row, start : start + len(completion)] = completion
        mask[row, : len(completion)] = True
    positions, _ = models.policy.family.positions(ids[:1], torch.ones_like(ids[:1]), prompt.vision)
    device, dtype = models.device, models.stock.dtype
    return RepeatedGroup(
        input_ids=ids.to(device),
        position_ids=positions.expand(-1, count, -1).to(device),
        mask=mask.to(device),
        prompt_tokens=start,
        pixels=_normalized(prompt.vision, models).to(device=device, dtype=dtype),
        grid_thw=prompt.vision.grid_thw.to(device),
    )


def _normalized(vision: VisionInput, models: Models) -> Tensor:
    return (vision.patches.float() / 255 - models.policy.family.image_mean[0]) / models.policy.family.image_std[0]


def media(group: RepeatedGroup, *, copies: int) -> dict[str, Tensor]:
    """Keywords for the stock model: the video, `copies` times."""
    return {
        "pixel_values_videos": group.pixels.repeat(copies, 1),
        "video_grid_thw": group.grid_thw.repeat(copies, 1),
    }


def repeated_logprobs(model: Qwen2_5_VLForConditionalGeneration, group: RepeatedGroup) -> Tensor:
    """[G, C]: pixels and prompt computed G times, log_softmax over the whole vocabulary."""
    logits = model(
        input_ids=group.input_ids,
        position_ids=group.position_ids,
        use_cache=False,
        logits_to_keep=group.mask.shape[1] + 1,
        **media(group, copies=len(group.input_ids)),
    ).logits
    return _gathered(logits, group)


def vision_once_logprobs(model: Qwen2_5_VLForConditionalGeneration, group: RepeatedGroup) -> Tensor:
    """[G, C]: the video encoded once and its features repeated; the prompt still computed G times."""
    hidden = model.model.language_model(
        inputs_embeds=_embeddings(model, group, vision_features(model, group)),
        position_ids=group.position_ids,
        use_cache=False,
    ).last_hidden_state
    return _gathered(model.lm_head(hidden[:, -group.mask.shape[1] - 1 :]), group)


def chunked_logprobs(
    model: Qwen2_5_VLForConditionalGeneration, group: RepeatedGroup, features: Tensor, *, chunk_size: int
) -> Tensor:
    """[G, C]: the prompt computed G times from given features; logits of at most `chunk_size` tokens exist at once."""
    hidden = model.model.language_model(
        inputs_embeds=_embeddings(model, group, features), position_ids=group.position_ids, use_cache=False
    ).last_hidden_state
    return masked_logprobs(
        model,
        hidden[:, group.prompt_tokens - 1 : -1],
        group.input_ids[:, group.prompt_tokens :],
        group.mask,
        chunk_size,
    )


def masked_logprobs(
    model: Qwen2_5_VLForConditionalGeneration, hidden: Tensor, targets: Tensor, mask: Tensor, chunk_size: int
) -> Tensor:
    """[G, C] of targets [G, C] from the states [G, C, H] that predict them, zero where the mask is false."""
    values = token_statistics(hidden[mask], model.lm_head.weight, targets[mask], chunk_size=chunk_size).logprobs
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def vision_features(model: Qwen2_5_VLForConditionalGeneration, group: RepeatedGroup) -> Tensor:
    """[M, H]: features of the M video tokens, from one tower call."""
    return model.model.visual(group.pixels, grid_thw=group.grid_thw).pooler_output


def _embeddings(model: Qwen2_5_VLForConditionalGeneration, group: RepeatedGroup, features: Tensor) -> Tensor:
    """[G, L, H] with the same features in every row."""
    embeddings = model.get_input_embeddings()(group.input_ids)
    places = (group.input_ids == VIDEO_TOKEN)[..., None]
    return embeddings.masked_scatter(places, features.to(embeddings.dtype).repeat(len(group.input_ids), 1))


def _gathered(logits: Tensor, group: RepeatedGroup) -> Tensor:
    targets = group.input_ids[:, group.prompt_tokens :]
    return full_softmax_logprobs(logits[:, :-1], targets) * group.mask


def full_softmax_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of targets [...] from logits [..., V], in float32."""
    return logits.float().log_softmax(dim=-1).gather(-1, targets[..., None]).squeeze(-1)


def repeated_prefill(model: Qwen2_5_VLForConditionalGeneration, group: RepeatedGroup) -> Tensor:
    """Logits [G, V] of the first completion token, with a key-value cache of G rows."""
    return model(
        input_ids=group.input_ids,
        position_ids=group.position_ids,
        use_cache=True,
        logits_to_keep=1,
        **media(group, copies=len(group.input_ids)),
    ).logits[:, -1]


def vision_once_prefill(model: Qwen2_5_VLForConditionalGeneration, group: RepeatedGroup) -> Tensor:
    """The same with the video encoded once."""
    hidden = model.model.language_model(
        inputs_embeds=_embeddings(model, group, vision_features(model, group)),
        position_ids=group.position_ids,
        use_cache=True,
    ).last_hidden_state
    return model.lm_head(hidden[:, -1])


def stock_generate(
    model: Qwen2_5_VLForConditionalGeneration,
    group: RepeatedGroup,
    *,
    new_tokens: int,
    repeat_inputs: bool,
) -> Tensor:
    """int64 [G, new_tokens] from transformers' own `generate`.

    Its positions after a video follow another rule in some versions; only its cost matters here.

    Args:
        model: the stock model.
        group: rows of prompts alone.
        new_tokens: tokens of every completion.
        repeat_inputs: give it G copies of prompt and pixels, which is what versions up to 5.17 make of
            num_return_sequences; else one copy and num_return_sequences = G, whatever the installed one makes of it.
    """
    count = len(group.input_ids)
    copies, returned = (count, 1) if repeat_inputs else (1, count)
    ids = group.input_ids[:copies]
    options: dict[str, Any] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "suppress_tokens": sorted(SPECIAL_IDS.values()),
    }
    training = model.training
    model.eval()  # with gradient checkpointing, training mode would drop the cache
    try:
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == VIDEO_TOKEN).int() * 2,
            second_per_grid_ts=torch.ones(copies, device=ids.device),
            num_return_sequences=returned,
            **media(group, copies=copies),
            **options,
        )
    finally:
        model.train(training)
    return output[:, ids.shape[1] :]
