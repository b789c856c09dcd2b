"""The policy: one vision-language model for sampling, fine-tuning, policy gradients and evaluation.

All ways into the model run through here with the same positions and the same output projection, so sampler and
trainer agree by construction.

Shapes: B prompts, G completions per prompt, S = B * G, P prompt tokens, C completion tokens, N completion tokens in
all, L tokens of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from datamodules.collate import IGNORED_LABEL, PromptCollator
from datamodules.types import EncodedPrompt, PromptBatch, SFTBatch, VisionInput
from lightning_modules.functional.logprobs import TokenStatistics, token_statistics
from lightning_modules.functional.masking import length_mask
from lightning_modules.policy.family import ModelFamily
from lightning_modules.policy.group_cache import GroupCache
from lightning_modules.policy.prompt_state import PromptState
from lightning_modules.policy.shared_prefix import pack_index
from lightning_modules.policy.types import CompletionStatistics, PolicyBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

Batch = TypeVar("Batch", bound=PromptBatch | SFTBatch)

_NO_POSITIONS = "call Policy.with_positions on the batch first"


class Policy(nn.Module):
    """A transformers vision-language model behind the calls that training and sampling need.

    Args:
        model: the transformers model.
        processor: its processor.
        family: the adapter of its model family.
        logprob_chunk_size: rows of logits that exist at a time when log-probabilities are computed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        family: ModelFamily,
        *,
        logprob_chunk_size: int = 512,
    ) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.family = family
        self.logprob_chunk_size = logprob_chunk_size
        self.is_gathered = False
        """Inside `sharding.unsharded`: all weights are here, whole."""

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    def collate(self, prompts: Sequence[EncodedPrompt]) -> PromptBatch:
        """A batch of prompts with their positions, on the CPU."""
        return self.with_positions(PromptCollator(pad_token_id=self.tokenizer.pad_token_id)(prompts))

    def with_positions(self, batch: Batch) -> Batch:
        """The batch with its positions filled in; call it before the batch moves to the device."""
        position_ids, next_position = self.family.positions(batch.input_ids, batch.attention_mask, batch.vision)
        if isinstance(batch, PromptBatch):
            return replace(batch, position_ids=position_ids, next_position=next_position)
        return replace(batch, position_ids=position_ids)

    @property
    def vision_is_frozen(self) -> bool:
        """No parameter between the pixels and the language model trains."""
        return not any(parameter.requires_grad for parameter in self.family.vision_parameters(self.model))

    def with_frozen_features(self, batch: PromptBatch) -> PromptBatch:
        """The batch with its vision features where they stay the same all step long: sampling, policy and reference
        then share one tower call. Without media there are no features, and no rank calls the tower again. Unchanged
        where the tower trains."""
        if not self.vision_is_frozen:
            return batch
        if batch.vision is None:
            return replace(batch, vision_features=self._no_features())
        with torch.no_grad():
            return replace(batch, vision_features=self.family.encode_vision(self.model, batch.vision))

    def pack(
        self, batch: PromptBatch, completions: Sequence[Sequence[Tensor]], *, prompts_in_row: bool = True
    ) -> PolicyBatch:
        """Pack B prompts with any number of completions each (int64 [C] on the CPU, end-of-sequence included) into one
        row; without `prompts_in_row`, the completions alone.

        Positions, media and features are those of the batch, and so is the device.
        """
        assert batch.position_ids is not None and batch.next_position is not None, _NO_POSITIONS
        ids, positions = [], []
        prompt_positions = batch.position_ids.cpu()
        lengths = [[len(completion) for completion in members] for members in completions]
        layout, rows = pack_index([len(p.input_ids) for p in batch.prompts], lengths, prompts_in_row=prompts_in_row)
        for row, (next_position, members) in enumerate(zip(batch.next_position.tolist(), completions, strict=True)):
            prompt = batch.prompts[row].input_ids
            if prompts_in_row:
                ids.append(prompt)
                positions.append(prompt_positions[:, row, -len(prompt) :])  # without the padding on the left
            for completion in members:
                ids.append(completion[:-1])
                positions.append((next_position + torch.arange(len(completion) - 1)).expand(3, -1))
        targets = [completion for members in completions for completion in members]
        if not any(map(len, ids)):  # a row needs a token, even if what follows it is not used
            group = next(index for index, members in enumerate(completions) if members)
            prompt, (_, *others) = layout[group]
            layout = (*layout[:group], (prompt, (1, *others)), *layout[group + 1 :])
            ids.append(targets[0])
            positions.append(batch.next_position[group].cpu().expand(3, 1))
        flat_lengths = torch.tensor([len(completion) for completion in targets], dtype=torch.long)
        features = batch.vision_features if prompts_in_row else self._no_features()
        return PolicyBatch(
            input_ids=torch.cat(ids)[None],
            position_ids=torch.cat(positions, dim=1)[:, None],
            layout=layout,
            rows=rows,
            targets=torch.cat([*targets, flat_lengths[:0]]),
            mask=length_mask(flat_lengths, max(map(len, targets), default=0)),
            vision=batch.vision if features is None else None,
            vision_features=features,
        ).to(batch.input_ids.device)

    def embed(self, input_ids: Tensor, vision: VisionInput | None, features: Tensor | None = None) -> Tensor:
        """[B, L, H]: token embeddings with the media tokens replaced by features of one vision tower call.

        Features [M, H] that are known already save the call. A batch without media sends a tiny masked clip through
        the tower, so that every rank runs the same modules and no rank waits for another's gradients.
        """
        embeddings = self.model.get_input_embeddings()(input_ids)
        if features is not None:
            return self.family.scatter_vision(embeddings, input_ids, features)
        if vision is None:
            features = self.family.encode_vision(self.model, self.family.dummy_vision(input_ids.device))
            return embeddings + 0 * features.sum().to(embeddings.dtype)
        return self.family.scatter_vision(embeddings, input_ids, self.family.encode_vision(self.model, vision))

    def run_prompts(self, batch: PolicyBatch) -> tuple[PromptState, Tensor]:
        """Run a row of prompts alone: what completions need of them, and the states after their last tokens [B, H].

        The latter are part of the former; FSDP2 looks in what is returned for what begins a backward pass.
        """
        assert not any(lengths for _, lengths in batch.layout), "pack the prompts without completions"
        lengths = [prompt for prompt, _ in batch.layout]
        state = PromptState(lengths, self._head)
        last = torch.tensor(lengths).cumsum(0).sub(1).to(batch.input_ids.device)
        last_hidden = self._row_hidden(batch, state)[last]
        state.close(last_hidden)
        return state, last_hidden

    def logprobs(
        self, batch: PolicyBatch, *, temperature: float, prompts: PromptState | None = None
    ) -> CompletionStatistics:
        """Log-probabilities of packed completions under the softmax at `temperature`, [S, C].

        A row of completions alone continues `prompts`.
        """
        hidden = self._row_hidden(batch, prompts)
        if prompts is not None:
            hidden = torch.cat([prompts.last_hidden, hidden])
        statistics = self._statistics(hidden[batch.rows], batch.targets, temperature)
        padded = statistics.logprobs.new_zeros(batch.mask.shape)
        return CompletionStatistics(
            logprobs=padded.masked_scatter(batch.mask, statistics.logprobs),
            entropy=padded.masked_scatter(batch.mask, statistics.entropy),
        )

    def target_statistics(self, batch: SFTBatch) -> TokenStatistics:
        """Log-probabilities of the labeled tokens of a fine-tuning batch, [N] in row order.

        The records go through the model one after another in one row, without their padding.
        """
        assert batch.position_ids is not None, _NO_POSITIONS
        real = batch.attention_mask.bool()
        layout = tuple((length, ()) for length in real.sum(dim=1).tolist())
        positions = batch.position_ids[:, real][:, None]
        hidden = self._hidden(batch.input_ids[real][None], batch.vision, positions, shared_prefix=layout)[0]
        labels = batch.labels[real]
        # Records begin with their prompt, so that no label is predicted by the record before.
        predicting = (labels[1:] != IGNORED_LABEL).nonzero().flatten()
        return self._statistics(hidden[predicting], labels[predicting + 1], 1.0)

    def prefill(self, batch: PromptBatch, *, group_size: int) -> tuple[Tensor, GroupCache]:
        """Run each prompt once: logits of the first completion token [B, V] and the cache for B * G completions."""
        state, last_hidden = Policy.run_prompts(self, self.pack(batch, [()] * len(batch)))
        return self._logits(last_hidden), GroupCache(state.padded_layers(), state.lengths, group_size)

    def decode(self, tokens: Tensor, position: Tensor, cache: GroupCache) -> Tensor:
        """Logits [S, V] after one more token per sequence.

        Args:
            tokens: int64 [S].
            position: int64 [S], the same in all three position rows.
            cache: extended in place.
        """
        hidden = self.family.language_model(self.model)(
            inputs_embeds=self.model.get_input_embeddings()(tokens[:, None]),
            position_ids=position[None, :, None].expand(3, -1, -1),
            # A mapping is taken as the finished masks, so that none is made of the prompt's length.
            attention_mask={"full_attention": None, "sliding_attention": None},
            past_key_values=cache,
            use_cache=True,
            group_cache=cache,
        ).last_hidden_state
        return self._logits(hidden[:, -1])

    def _hidden(
        self,
        input_ids: Tensor,
        vision: VisionInput | None,
        position_ids: Tensor | None,
        *,
        features: Tensor | None = None,
        **options,
    ) -> Tensor:
        assert position_ids is not None, _NO_POSITIONS
        options.setdefault("use_cache", False)
        return self.family.language_model(self.model)(
            inputs_embeds=self.embed(input_ids, vision, features), position_ids=position_ids, **options
        ).last_hidden_state

    def _row_hidden(self, batch: PolicyBatch, prompts: PromptState | None) -> Tensor:
        """[L, H] of a packed row."""
        options = {"features": batch.vision_features, "shared_prefix": batch.layout, "prompts": prompts}
        return self._hidden(batch.input_ids, batch.vision, batch.position_ids, **options)[0]

    def _no_features(self) -> Tensor:
        return torch.empty(0, self._head.shape[1], device=self._head.device)

    @property
    def _head(self) -> Tensor:
        """Weight of the output projection, [V, H]."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear), type(head)
        return head.weight

    def _logits(self, hidden: Tensor) -> Tensor:
        return (hidden @ self._head.T).float()

    def _statistics(self, hidden: Tensor, targets: Tensor, temperature: float) -> TokenStatistics:
        chunk_size = self.logprob_chunk_size
        return token_statistics(hidden, self._head, targets, temperature=temperature, chunk_size=chunk_size)
