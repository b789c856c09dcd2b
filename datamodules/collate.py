"""From samples to batches: left-padded prompts for sampling, right-padded rows with labels for fine-tuning.

Shapes: B prompts, P prompt tokens, C completion tokens, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.encoding import join_vision
from datamodules.types import EncodedPrompt, PromptBatch, SFTBatch

IGNORED_LABEL = -100


@dataclass(kw_only=True)
class SFTSample:
    """A prompt and the answer to imitate."""

    prompt: EncodedPrompt
    target_ids: Tensor
    """int64 [C], end-of-sequence token included."""


@dataclass(frozen=True, kw_only=True)
class PromptCollator:
    """Left-pads B prompts, so that all completions start in the same column."""

    pad_token_id: int

    def __call__(self, prompts: Sequence[EncodedPrompt]) -> PromptBatch:
        rows = [prompt.input_ids for prompt in prompts]
        return PromptBatch(
            prompts=list(prompts),
            bad_records=[bad for prompt in prompts for bad in prompt.replaces],
            input_ids=_padded(rows, self.pad_token_id, side="left"),
            attention_mask=_padded([torch.ones_like(row) for row in rows], 0, side="left"),
            vision=join_vision([prompt.vision for prompt in prompts]),
        )


@dataclass(frozen=True, kw_only=True)
class SFTCollator:
    """Right-pads B rows [prompt | target]; only target tokens carry labels."""

    pad_token_id: int

    def __call__(self, samples: Sequence[SFTSample]) -> SFTBatch:
        rows = [torch.cat([sample.prompt.input_ids, sample.target_ids]) for sample in samples]
        labels = [
            torch.cat([torch.full_like(sample.prompt.input_ids, IGNORED_LABEL), sample.target_ids])
            for sample in samples
        ]
        return SFTBatch(
            records=[sample.prompt.record for sample in samples],
            bad_records=[bad for sample in samples for bad in sample.prompt.replaces],
            input_ids=_padded(rows, self.pad_token_id, side="right"),
            attention_mask=_padded([torch.ones_like(row) for row in rows], 0, side="right"),
            labels=_padded(labels, IGNORED_LABEL, side="right"),
            vision=join_vision([sample.prompt.vision for sample in samples]),
        )


def _padded(rows: Sequence[Tensor], value: int, *, side: str) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
