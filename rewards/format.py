"""Does the completion follow the response format?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.answer_format import parse_response
from rewards.base import Reward
from rewards.types import RewardInput


def format_reward(completion: str) -> float:
    """1 if the whole completion is a think element followed by an answer element, else 0."""
    return float(parse_response(completion).well_formed)


class FormatReward(Reward):
    """1 if the whole completion is `<think>...</think><answer>...</answer>`, else 0."""

    name = "format"

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[float]:
        return [format_reward(completion) for completion in group.completions]
