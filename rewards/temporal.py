"""Bonus for answers that depend on the order of the frames (T-GRPO of Video-R1, arXiv 2503.21776).

Shapes: G completions per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.accuracy import AnswerParsing, accuracy_reward
from rewards.base import Reward
from rewards.types import RewardInput


class TemporalReward(Reward):
    """Right answers earn a bonus where the group does as well on ordered frames as on shuffled ones.

    With p the share of right completions of the group and q that of completions sampled for the same question with the
    frames shuffled: bonus to every right completion where p >= factor * q, and p > 0. Only videos have shuffled
    completions; other records earn 0.

    Args:
        weight: factor of the bonus in the total.
        gate: name of another reward; this one counts only where that one's raw score is above 0.
        name: name in logs and in the breakdown; "temporal" if not given.
        problem_types: the kinds of question that this reward is for, as spelled in records; null for all.
        bonus: what a right completion earns (Video-R1: 0.3).
        factor: how far below the shuffled share the ordered one may lie (Video-R1: 0.8).
        min_accuracy: a completion is right where its accuracy is above this (Video-R1: 0.1).
        shuffled_share: completions sampled on shuffled frames, as a share of the group (Video-R1: a half).
        parsing: how their answers are read; what the accuracy reward of the suite has.
    """

    name = "temporal"
    requires = ("accuracy",)

    def __init__(
        self,
        weight: float = 1.0,
        gate: str | None = None,
        name: str | None = None,
        problem_types: list[str] | None = None,
        bonus: float = 0.3,
        factor: float = 0.8,
        min_accuracy: float = 0.1,
        shuffled_share: float = 0.5,
        parsing: AnswerParsing = "strict",
    ) -> None:
        super().__init__(weight=weight, gate=gate, name=name, problem_types=problem_types)
        if factor < 0:
            raise ValueError(f"TemporalReward.factor is {factor}; it must be >= 0.")
        if not 0 < shuffled_share <= 1:
            raise ValueError(f"TemporalReward.shuffled_share is {shuffled_share}; it must be in (0, 1].")
        self.bonus = bonus
        self.factor = factor
        self.min_accuracy = min_accuracy
        self.shuffled_share = shuffled_share
        self.parsing: AnswerParsing = parsing

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> Sequence[float]:
        right = [accuracy > self.min_accuracy for accuracy in raw["accuracy"]]
        if not group.shuffled_completions:
            return [0.0] * len(right)
        shuffled = [
            accuracy_reward(group.problem_type, completion, group.solution, parsing=self.parsing, options=group.options)
            > self.min_accuracy
            for completion in group.shuffled_completions
        ]
        earned = sum(right) / len(right) >= self.factor * sum(shuffled) / len(shuffled)
        return [self.bonus if earned and one else 0.0 for one in right]
