"""What sampling takes and gives: a group is one prompt with its G completions.

Shapes: B prompts, G completions per prompt, C completion tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from datamodules.types import EncodedPrompt, PromptBatch
from rewards.errors import UserError


class NonFiniteLogitsError(UserError):
    """The policy gave logits that are not finite, so nothing can be sampled; the message names the records."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn."""

    max_new_tokens: int = 1024
    temperature: float = 1.0
    """Divides the logits before every filter."""
    top_p: float = 1.0
    """Smallest set of most likely tokens whose probability reaches this; 1 keeps all."""
    top_k: int = 0
    """Most likely tokens kept; 0 keeps all."""
    min_p: float = 0.0
    """Tokens less likely than this fraction of the most likely one's probability are dropped; 0 keeps all."""
    greedy: bool = False
    """Take the most likely token; temperature and filters then do nothing."""

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, ">= 1"),
            "temperature": (self.temperature > 0, "> 0 (set greedy: true for the most likely token)"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, ">= 0"),
            "min_p": (0 <= self.min_p < 1, "in [0, 1)"),
        }
        for name, (valid, allowed) in checks.items():
            if not valid:
                raise UserError(f"sampling.{name} is {getattr(self, name)}; it must be {allowed}.")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer."""

    token_ids: Tensor
    """int64 [C] on the CPU; ends with the end-of-sequence token unless `truncated`."""
    text: str
    """Decoded without special tokens."""
    sampling_logprobs: Tensor
    """float32 [C]: log-probability under the distribution that was sampled from (temperature and filters applied)."""
    policy_logprobs: Tensor
    """float32 [C]: log-probability under the full softmax at the sampling temperature; what training recomputes."""
    truncated: bool
    """The token limit was reached without an end-of-sequence token."""


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """One prompt and its G completions: the unit of sampling, rewards and training."""

    prompt: EncodedPrompt
    completions: tuple[Completion, ...]


class RolloutEngine(ABC):
    """Draws completions. A module builds its engine from the policy, as `Engine(policy)`, with what stands under
    `engine.init_args` as further arguments. Heavy back ends are imported inside."""

    @abstractmethod
    def generate(
        self, batch: PromptBatch, config: SamplingConfig, *, group_size: int, seeds: Sequence[int]
    ) -> list[RolloutGroup]:
        """Draw `group_size` completions for each of the B prompts.

        Args:
            batch: B prompts on the engine's device.
            config: the sampling distribution.
            group_size: G.
            seeds: B integers; the same seed and prompt give the same group whatever else is in the batch.

        Raises:
            NonFiniteLogitsError: a log-probability of a completion is not finite.
        """

    @abstractmethod
    def sync_weights(self) -> None:
        """Take over the policy's current weights; called after they changed."""
