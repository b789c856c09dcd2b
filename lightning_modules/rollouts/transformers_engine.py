"""The sampler: every prompt is computed once, its cache serves all G completions.

Shapes: B prompts, G completions per prompt, S = B * G, C completion tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.types import PromptBatch
from lightning_modules.functional.sampling import filtered_logprobs, inverse_cdf_sample
from lightning_modules.policy.policy import Policy
from lightning_modules.rollouts.types import (
    Completion,
    NonFiniteLogitsError,
    RolloutEngine,
    RolloutGroup,
    SamplingConfig,
)
from rewards.errors import UserError

CUDA_SYNC_INTERVAL = 16
"""Steps between looks at which sequences have ended; a look makes the host wait for the GPU."""


@dataclass(kw_only=True)
class _Sampled:
    """Growing record of S sequences; every tensor is [S, max_new_tokens]."""

    tokens: Tensor
    sampling_logprobs: Tensor
    policy_logprobs: Tensor


class TransformersEngine(RolloutEngine):
    """Draws completions with the policy's own weights, in process.

    Args:
        policy: the policy, shared with the trainer: there is nothing to synchronize.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        eos = policy.model.generation_config.eos_token_id
        self.eos_token_ids = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
        if None in self.eos_token_ids:
            raise UserError(
                "The model's generation config has no eos_token_id, so no completion could ever end; add it to "
                "generation_config.json of the model folder."
            )

    def sync_weights(self) -> None:
        """Nothing to do: sampler and trainer use the same weights."""

    def generate(
        self, batch: PromptBatch, config: SamplingConfig, *, group_size: int, seeds: Sequence[int]
    ) -> list[RolloutGroup]:
        """Draw `group_size` completions for each prompt; see `RolloutEngine.generate`."""
        assert len(seeds) == len(batch), f"{len(seeds)} seeds for {len(batch)} prompts"
        training = self.policy.training
        self.policy.eval()  # with gradient checkpointing, training mode would drop the cache
        try:
            with torch.no_grad():
                sampled = self._sample(batch, config, group_size, seeds)
        finally:
            self.policy.train(training)
        return self._groups(batch, sampled, group_size)

    def _sample(self, batch: PromptBatch, config: SamplingConfig, group_size: int, seeds: Sequence[int]) -> _Sampled:
        assert batch.next_position is not None, "call Policy.with_positions on the batch first"
        policy, device = self.policy, batch.input_ids.device
        logits, cache = policy.prefill(batch, group_size=group_size)
        logits = logits.repeat_interleave(group_size, dim=0)
        position = batch.next_position.repeat_interleave(group_size)
        uniforms = _uniforms(seeds, group_size, config.max_new_tokens).to(device)

        count = len(uniforms)
        shape = (count, config.max_new_tokens)
        sampled = _Sampled(
            tokens=torch.full(shape, self.eos_token_ids[0], device=device),
            sampling_logprobs=torch.zeros(shape, device=device),
            policy_logprobs=torch.zeros(shape, device=device),
        )
        eos = torch.tensor(self.eos_token_ids, device=device)
        rows = torch.arange(count, device=device)  # sequences still in the batch
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        interval = CUDA_SYNC_INTERVAL if device.type == "cuda" else 1
        for step in range(config.max_new_tokens):
            tokens = self._draw(logits, config, uniforms[rows, step], sampled, rows, step)
            ended = ended | torch.isin(tokens, eos)
            if step + 1 == config.max_new_tokens:
                break
            if (step + 1) % interval == 0 and (keep := (~ended).nonzero().flatten()).numel() < len(ended):
                if not keep.numel():
                    break
                cache.keep(keep)
                rows, tokens, ended, position = rows[keep], tokens[keep], ended[keep], position[keep]
            logits = policy.decode(tokens, position, cache)
            position = position + 1
        return sampled

    def _draw(
        self, logits: Tensor, config: SamplingConfig, uniforms: Tensor, sampled: _Sampled, rows: Tensor, step: int
    ) -> Tensor:
        """Next token [S] of the sequences `rows`, recorded with both log-probabilities."""
        policy_logprobs = torch.log_softmax(logits / config.temperature, dim=-1)
        banned = torch.tensor(self.policy.family.vision_token_ids, device=logits.device)
        allowed = logits.index_fill(1, banned, -torch.inf)
        if config.greedy:
            tokens = allowed.argmax(dim=-1)
            sampling_logprobs = torch.zeros_like(tokens, dtype=policy_logprobs.dtype)
        else:
            distribution = filtered_logprobs(
                allowed,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                min_p=config.min_p,
            )
            tokens = inverse_cdf_sample(distribution, uniforms)
            sampling_logprobs = distribution.gather(1, tokens[:, None]).squeeze(1)
        sampled.tokens[rows, step] = tokens
        sampled.sampling_logprobs[rows, step] = sampling_logprobs
        sampled.policy_logprobs[rows, step] = policy_logprobs.gather(1, tokens[:, None]).squeeze(1)
        return tokens

    def _groups(self, batch: PromptBatch, sampled: _Sampled, group_size: int) -> list[RolloutGroup]:
        tokens, sampling, policy = (
            tensor.cpu() for tensor in (sampled.tokens, sampled.sampling_logprobs, sampled.policy_logprobs)
        )
        is_eos = torch.isin(tokens, torch.tensor(self.eos_token_ids))
        truncated = ~is_eos.any(dim=1)
        lengths = torch.where(truncated, tokens.shape[1], is_eos.int().argmax(dim=1) + 1).tolist()
        rows = zip(policy, lengths, strict=True)
        broken = sorted({i // group_size for i, (row, n) in enumerate(rows) if not row[:n].isfinite().all()})
        if broken:  # looked at here, where the GPU has been waited for anyway
            where = ", ".join(batch.prompts[index].record.where for index in broken)
            raise NonFiniteLogitsError(f"The policy's logits are not finite for {where}, so nothing can be sampled.")
        texts = self.policy.tokenizer.batch_decode(
            [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        completions = [
            Completion(
                token_ids=tokens[row, :length].clone(),
                text=texts[row],
                sampling_logprobs=sampling[row, :length].clone(),
                policy_logprobs=policy[row, :length].clone(),
                truncated=bool(truncated[row]),
            )
            for row, length in enumerate(lengths)
        ]
        return [
            RolloutGroup(prompt=prompt, completions=tuple(completions[index * group_size : (index + 1) * group_size]))
            for index, prompt in enumerate(batch.prompts)
        ]


def _uniforms(seeds: Sequence[int], group_size: int, steps: int) -> Tensor:
    """float64 [B * G, steps] in [0, 1): the randomness of each group, from its own seed."""
    groups = [
        torch.rand(group_size, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.cat(groups)
