"""Bonus for answers that depend on the order of the frames (T-GRPO of Video-R1, arXiv 2503.21776).

Shapes: G completions per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from rewards.accuracy import AnswerParsing, accuracy_reward
from rewards.base import Reward
from rewards.errors import UserError, check_choice
from rewards.types import RewardInput

TemporalVariant = Literal["paper", "code"]


class TemporalReward(Reward):
    """Right answers earn a bonus where the group does about as well on ordered frames as on shuffled ones, or better.

    A completion is right where its accuracy is above `min_accuracy`. Let p measure the group, and q the completions
    sampled for the same question with the frames shuffled. Every right completion earns the bonus if p >= factor * q.
    Only videos have shuffled completions; other records earn 0.

    Args:
        variant: what p and q are. "paper": the fraction of right completions. "code": the mean accuracy, as the
            released code of Video-R1 computes. They agree where an accuracy is 0 or 1 (multiple choice, numerical)
            and differ where it is graded (OCR, free-form, regression): of the accuracies 0.2 and 0.4, "paper" makes 1,
            "code" makes 0.3. `problem_types: [multiple choice, numerical]` leaves graded questions out.
        bonus: what a right completion earns (Video-R1: 0.3).
        factor: how much of the accuracy on shuffled frames the group must reach (Video-R1: 0.8).
        min_accuracy: a completion is right where its accuracy is above this (Video-R1: 0.1).
        shuffled_fraction: completions sampled on shuffled frames, as a fraction of the group size (Video-R1: a half).
        parsing: how answers to shuffled frames are read; should be that of the suite's accuracy reward.
        kwargs: weight, gate, name and problem_types, as for every `Reward`.

    Raises:
        UserError: the variant is unknown, factor is negative, or shuffled_fraction is not in (0, 1].
    """

    name = "temporal"
    requires = ("accuracy",)

    def __init__(
        self,
        bonus: float = 0.3,
        factor: float = 0.8,
        min_accuracy: float = 0.1,
        shuffled_fraction: float = 0.5,
        parsing: AnswerParsing = "strict",
        variant: TemporalVariant = "paper",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice(f"Reward {self.name!r}: variant", variant, get_args(TemporalVariant))
        if factor < 0:
            raise UserError(f"Reward {self.name!r} has factor {factor}; it must be >= 0.")
        if not 0 < shuffled_fraction <= 1:
            raise UserError(f"Reward {self.name!r} has shuffled_fraction {shuffled_fraction}; it must be in (0, 1].")
        self.variant: TemporalVariant = variant
        self.bonus = bonus
        self.factor = factor
        self.min_accuracy = min_accuracy
        self.shuffled_fraction = shuffled_fraction
        self.parsing: AnswerParsing = parsing

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[float]:
        ordered = raw["accuracy"]
        if not group.shuffled_completions:
            return [0.0] * len(ordered)
        shuffled = [
            accuracy_reward(group.problem_type, completion, group.solution, parsing=self.parsing, options=group.options)
            for completion in group.shuffled_completions
        ]
        earned = self._measure(ordered) >= self.factor * self._measure(shuffled)
        return [self.bonus if earned and accuracy > self.min_accuracy else 0.0 for accuracy in ordered]

    def _measure(self, accuracies: Sequence[float]) -> float:
        """p or q of the completions with these accuracies."""
        counted = accuracies if self.variant == "code" else [accuracy > self.min_accuracy for accuracy in accuracies]
        return sum(counted) / len(counted)
