"""The rewards of a run together: weights, gates, routing, truncation, normalization, validation and the breakdown.

Shapes: B groups, G completions per group. Reward k scores completion i of a group raw[k, i]; it has the weight w[k].

    x[k, i] = raw[k, i] * 1[the gate of k scores i above 0]       raw is 0 where k is not for this kind of question
    x[k, i] = 0 for a truncated i                                 with `truncation: zero`
    x[k, i] = (x[k, i] - mean_i x[k]) / (std_i x[k] + 1e-4)       with `normalization: per_reward`
    total[i] = sum over k of w[k] * x[k, i]
    total[i] = total[i] - truncation_penalty for a truncated i    with `truncation: penalize`

std is that of the group with Bessel's correction, as in the group-relative advantage. A reward that scores the whole
group alike therefore contributes exactly 0 under `per_reward`, and so does a group of one. `per_reward` is the first
step of GDPO (arXiv 2601.05242); `advantage_scale: batch` is its second, the division by the batch's standard deviation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from rewards.base import Reward, naming_failures
from rewards.errors import UserError, check_choice
from rewards.types import RewardBreakdown, RewardInput

TOTAL = "total"
"""Name of the sum in stored breakdowns and logs; no reward may take it."""

TRUNCATION = "truncation"
"""Name of the truncation penalty among the contributions; no reward may take it."""

RESERVED_NAMES = {TOTAL: "the sum", TRUNCATION: "the truncation penalty"}

EPS = 1e-4
"""Added to the standard deviation under `per_reward`, as in the group-relative advantage."""

LARGEST_SCORE = 1e16
"""The size up to which raw scores and totals are accepted. They are float32, and standard deviations sum their squares:
1e16 leaves room for three million completions below float32's largest number, 3.4e38."""

GroupScores = tuple[float, ...]
Normalization = Literal["sum_then_normalize", "per_reward"]
Truncation = Literal["keep", "zero", "penalize"]


class NonFiniteScoreError(UserError):
    """A score or a total is not a number that can be trained on; the message names reward, record and completion."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """How the scores of the rewards become one total.

    Raises:
        UserError: an unknown choice, a penalty without `truncation: penalize` or the reverse, or a penalty that is not
            finite and above 0.
    """

    normalization: Normalization = "sum_then_normalize"
    """sum_then_normalize: the total is the weighted sum, and only the advantage compares it within the group (GRPO).
    per_reward: each reward is standardized within its group before the weighted sum, so that no reward is drowned out
    by one with a larger spread (GDPO, arXiv 2601.05242; its second step is `advantage_scale: batch`)."""
    truncation: Truncation = "keep"
    """What happens to completions that reached the token limit. keep: scored as they are. zero: every reward counts 0
    for them. penalize: scored as they are, and `truncation_penalty` is subtracted from their total."""
    truncation_penalty: float | None = None
    """Subtracted from the total of a truncated completion with `truncation: penalize`; above 0."""

    def __post_init__(self) -> None:
        check_choice("suite.normalization", self.normalization, get_args(Normalization))
        check_choice("suite.truncation", self.truncation, get_args(Truncation))
        if (self.truncation == "penalize") != (self.truncation_penalty is not None):
            raise UserError(
                f"suite.truncation is {self.truncation!r} and suite.truncation_penalty is {self.truncation_penalty}; "
                "set both (truncation: penalize, truncation_penalty: 0.5) or leave the penalty null."
            )
        if self.truncation_penalty is not None and not 0 < self.truncation_penalty < math.inf:
            raise UserError(
                f"suite.truncation_penalty is {self.truncation_penalty}; it is subtracted, so it must be above 0 and "
                "finite."
            )


class RewardSuite:
    """Scores groups of completions with several rewards.

    Args:
        rewards: at least one reward, in the order of logs and breakdowns. Names are unique; a gate and every required
            name is another reward of the list.
        config: normalization and truncation; the plain weighted sum by default.

    Raises:
        UserError: the list is empty, a name is missing, used twice or reserved, a weight is negative or not finite,
            all weights are 0, a gate or a required reward is missing, or gates and requirements form a cycle.
    """

    def __init__(self, rewards: Sequence[Reward], config: SuiteConfig | None = None) -> None:
        _check_names(rewards)
        _check_weights(rewards)
        self.rewards = {reward.name: reward for reward in rewards}
        self.config = config or SuiteConfig()
        self._order = _evaluation_order(self.rewards)

    def score(self, groups: Sequence[RewardInput]) -> RewardBreakdown:
        """Score B groups of G completions.

        Returns:
            The breakdown, float32 [B, G] on the CPU, rewards in the order of the configuration.

        Raises:
            UserError: there are no groups, the groups differ in size, or a reward returned anything but one number
                per completion.
            NonFiniteScoreError: a score or a total is not finite or larger than `LARGEST_SCORE`.
            RewardError: a reward raised an exception.
        """
        _check_groups(groups)
        raw: dict[str, list[GroupScores]] = {}
        seconds: dict[str, float] = {}
        for name in self._order:
            started = time.perf_counter()
            raw[name] = self._raw_scores(self.rewards[name], groups, raw)
            seconds[name] = time.perf_counter() - started
        components = {name: torch.tensor(raw[name], dtype=torch.float32) for name in self.rewards}  # [B, G]
        contributions = self._contributions(components, groups)
        total = torch.stack(tuple(contributions.values())).sum(dim=0)  # [B, G]
        _check_totals(total, contributions, groups)
        return RewardBreakdown(
            total=total,
            components=components,
            contributions=contributions,
            seconds={name: seconds[name] for name in self.rewards},
        )

    def _contributions(self, components: Mapping[str, Tensor], groups: Sequence[RewardInput]) -> dict[str, Tensor]:
        """What each reward adds to the total, and what truncation takes from it; all [B, G]."""
        truncated = torch.tensor([group.truncated for group in groups])  # [B, G]
        contributions = {}
        for name, reward in self.rewards.items():
            counted = components[name]
            if reward.gate is not None:
                counted = counted * (components[reward.gate] > 0)
            if self.config.truncation == "zero":
                counted = counted.masked_fill(truncated, 0.0)
            if self.config.normalization == "per_reward":
                counted = _standardized(counted)
            contributions[name] = reward.weight * counted
        if self.config.truncation_penalty is not None:
            contributions[TRUNCATION] = -self.config.truncation_penalty * truncated.float()
        return contributions

    @staticmethod
    def _raw_scores(
        reward: Reward, groups: Sequence[RewardInput], raw: Mapping[str, Sequence[GroupScores]]
    ) -> list[GroupScores]:
        """B rows of G checked scores, 0 for the questions that the reward is not for."""
        scores: list[GroupScores] = []
        for row, group in enumerate(groups):
            if not reward.applies_to(group.problem_type):
                scores.append((0.0,) * len(group.completions))
                continue
            with naming_failures(reward, group):
                returned = reward.score(group, {name: raw[name][row] for name in reward.requires})
            scores.append(_checked_scores(reward, group, returned))
        return scores


def _standardized(values: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 within each group; [B, G]."""
    values = values.double()  # The mean of G equal float32 numbers is then exactly that number.
    centered = values - values.mean(dim=1, keepdim=True)
    variance = centered.square().sum(dim=1, keepdim=True) / max(values.shape[1] - 1, 1)
    return (centered / (variance.sqrt() + EPS)).float()


def _check_names(rewards: Sequence[Reward]) -> None:
    if not rewards:
        raise UserError("The list of rewards is empty; give at least one, such as rewards.AccuracyReward.")
    for reward in rewards:
        if not hasattr(reward, "weight"):
            raise UserError(
                f"A {type(reward).__name__} has no weight; its __init__ must call "
                "super().__init__(weight=..., gate=..., name=..., problem_types=...)."
            )
    names = [reward.name for reward in rewards]
    for reward in rewards:
        if not reward.name:
            raise UserError(f"A {type(reward).__name__} has no name; set `name` on the class or in its init_args.")
        if reward.name in RESERVED_NAMES:
            raise UserError(
                f"A {type(reward).__name__} is named {reward.name!r}, the name of {RESERVED_NAMES[reward.name]}; "
                "choose another name."
            )
        if names.count(reward.name) > 1:
            raise UserError(
                f"{names.count(reward.name)} rewards are named {reward.name!r}; names must be unique. "
                "Give each its own `name` in its init_args."
            )


def _check_weights(rewards: Sequence[Reward]) -> None:
    for reward in rewards:
        if not (math.isfinite(reward.weight) and reward.weight >= 0):
            raise UserError(
                f"Reward {reward.name!r} has weight {reward.weight}; it must be finite and at least 0 "
                "(0 only measures; a penalty is a reward that returns negative scores)."
            )
    if all(reward.weight == 0 for reward in rewards):
        names = ", ".join(reward.name for reward in rewards)
        raise UserError(
            f"All rewards ({names}) have weight 0, so nothing would be learned; give at least one a positive weight."
        )


def _evaluation_order(rewards: Mapping[str, Reward]) -> tuple[str, ...]:
    """Names so that every reward comes after its gate and after those that it requires."""
    needs = {
        name: (*reward.requires, *([] if reward.gate is None else [reward.gate])) for name, reward in rewards.items()
    }
    for name, needed_names in needs.items():
        for needed in needed_names:
            if needed not in rewards:
                role = "is gated by" if needed == rewards[name].gate else "requires"
                raise UserError(
                    f"Reward {name!r} {role} {needed!r}, which is not among the rewards ({', '.join(rewards)}); "
                    "add it or name one of these."
                )
    try:
        return tuple(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise UserError(
            f"Gates and required rewards form a cycle: {' -> '.join(error.args[1])}; remove one of these links."
        ) from error


def _check_groups(groups: Sequence[RewardInput]) -> None:
    if not groups:
        raise UserError("There are no groups to score; give at least one.")
    sizes = {len(group.completions) for group in groups}
    if len(sizes) > 1 or 0 in sizes:
        given = ", ".join(f"{group.record_id}: {len(group.completions)}" for group in groups)
        raise UserError(
            "All groups must hold the same number of completions, at least 1; "
            f"given per problem_id: {given}. Sample every group with one group_size."
        )


def _checked_scores(reward: Reward, group: RewardInput, scores: Sequence[float] | Tensor | None) -> GroupScores:
    """G finite floats, or an error that names the reward and the record."""
    where = f"Reward {reward.name!r} on problem_id {group.record_id}"
    if isinstance(scores, Tensor):
        scores = scores.tolist()
    expected = len(group.completions)
    if not isinstance(scores, Sequence) or len(scores) != expected:
        raise UserError(f"{where} returned {scores!r}; it must return {expected} numbers, one per completion.")
    for index, score in enumerate(scores):
        if not isinstance(score, Real):
            raise UserError(f"{where} returned {score!r} for completion {index}; scores must be finite numbers.")
        # Compared before float32 turns 1e300 into infinity, and without float(), which raises for the largest integers.
        if not abs(score) <= LARGEST_SCORE:
            raise NonFiniteScoreError(
                f"{where} returned {score!r} for completion {index}; scores must be finite numbers of at most "
                f"{LARGEST_SCORE:g} in size."
            )
    return tuple(float(score) for score in scores)


def _check_totals(total: Tensor, contributions: Mapping[str, Tensor], groups: Sequence[RewardInput]) -> None:
    for row, index in (~(total.abs() <= LARGEST_SCORE)).nonzero().tolist():
        parts = ", ".join(f"{name} {values[row, index].item():g}" for name, values in contributions.items())
        raise NonFiniteScoreError(
            f"The total of problem_id {groups[row].record_id}, completion {index}, is {total[row, index].item():g} "
            f"({parts}); it must be finite and at most {LARGEST_SCORE:g} in size. Lower the weights or the scores."
        )
