"""A bonus for right answers within a range of lengths (in the published code, not in the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.base import Reward
from rewards.errors import UserError
from rewards.types import RewardInput


class LengthReward(Reward):
    """`bonus` for every accurate completion of min_tokens to max_tokens, if enough of its group are accurate, else 0.

    Args:
        bonus: score of a completion that earns it.
        min_tokens: shortest completion that earns it, end-of-sequence token included.
        max_tokens: longest completion that earns it, end-of-sequence token included.
        min_accuracy: a completion is accurate if its raw accuracy is above this.
        min_accurate: accurate completions that a group needs before any of them earns the bonus.
        kwargs: weight, gate, name and problem_types, as for every `Reward`.

    Raises:
        UserError: no completion could ever earn the bonus.
    """

    name = "length"
    requires = ("accuracy",)

    def __init__(
        self,
        bonus: float = 0.2,
        min_tokens: int = 320,
        max_tokens: int = 512,
        min_accuracy: float = 0.1,
        min_accurate: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= min_tokens <= max_tokens:
            raise UserError(
                f"Reward {self.name!r} has min_tokens {min_tokens} and max_tokens {max_tokens}; "
                "they must be 0 <= min_tokens <= max_tokens."
            )
        if not 0 <= min_accuracy < 1:
            raise UserError(f"Reward {self.name!r} has min_accuracy {min_accuracy}; it must be in [0, 1).")
        self.bonus = bonus
        self.min_tokens = min_tokens
        self.max_tokens = max_tokens
        self.min_accuracy = min_accuracy
        self.min_accurate = min_accurate

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[float]:
        accurate = [score > self.min_accuracy for score in raw["accuracy"]]
        if sum(accurate) < self.min_accurate:
            return [0.0] * len(accurate)
        return [
            self.bonus if is_accurate and self.min_tokens <= tokens <= self.max_tokens else 0.0
            for is_accurate, tokens in zip(accurate, group.completion_tokens, strict=True)
        ]
