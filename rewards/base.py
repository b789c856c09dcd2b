"""What a reward is: a whole group in, one number per completion out. The suite owns weights, gates and routing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rewards.types import ProblemType, RewardInput


class RewardError(RuntimeError):
    """A reward failed; the message names the reward, its records and, if known, the completion."""


class Reward:
    """Base class of all rewards. A subclass sets `name`, perhaps `requires`, and writes one of three methods:

    - `score_one`, where every completion is scored by itself; a failure then names the completion;
    - `score`, where the completions of a group are compared or `requires` is read;
    - `score_batch`, where one pass over all groups is cheaper, as with an encoder.

    Args:
        weight: factor of the score in the total; 0 measures the reward without training on it.
        gate: name of a reward of the suite; this one counts only where that one's raw score is above 0.
        name: name in logs and in the breakdown; the class's own name for itself if not given.
        problem_types: the kinds of question that this reward is for, as spelled in records; elsewhere it is not asked
            and scores 0. null for all.

    Raises:
        ValueError: none of the three methods is written, or a problem type is unknown or the list of them is empty.
    """

    name: str = ""
    requires: tuple[str, ...] = ()
    """Names of the rewards of the suite whose raw scores this one reads."""
    problem_types: frozenset[ProblemType] | None = None
    """The kinds of question that this reward is for; None for all."""

    def __init__(
        self,
        weight: float = 1.0,
        gate: str | None = None,
        name: str | None = None,
        problem_types: list[str] | None = None,
    ) -> None:
        written = type(self)
        if (written.score_one, written.score, written.score_batch) == (
            Reward.score_one,
            Reward.score,
            Reward.score_batch,
        ):
            raise ValueError(f"{written.__name__} cannot score; write its score_one, score or score_batch.")
        self.weight = weight
        self.gate = gate
        if name is not None:
            self.name = name
        if problem_types is not None:
            self.problem_types = _known_types(problem_types, f"Reward {self.name or written.__name__!r}")

    def applies_to(self, problem_type: ProblemType) -> bool:
        """Whether groups of this kind are scored by this reward."""
        return self.problem_types is None or problem_type in self.problem_types

    def prepare(self) -> None:
        """Called once before training: load here what scoring needs, so that what is missing is said at once."""

    def score_one(self, group: RewardInput, index: int) -> float:
        """Score one completion of a group by itself.

        Args:
            group: the question and its completions.
            index: which completion, from 0.

        Returns:
            A finite number, before weight and gate.
        """
        raise AssertionError(f"{type(self).__name__} has no score_one: its score or score_batch must not call it")

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> Sequence[float]:
        """Score the G completions of one group.

        Args:
            group: the question and its completions.
            raw: name -> G raw scores, for each reward in `requires`.

        Returns:
            G finite numbers, before weight and gate.
        """
        scores = []
        for index in range(len(group.completions)):
            with naming_failures(self, [group], completion=index):
                scores.append(self.score_one(group, index))
        return scores

    def score_batch(
        self, groups: Sequence[RewardInput], raw: Sequence[Mapping[str, Sequence[float]]]
    ) -> Sequence[Sequence[float]]:
        """Score B groups at once.

        Args:
            groups: B groups, all of a kind that this reward is for.
            raw: B mappings, each as in `score`.

        Returns:
            B sequences of G finite numbers.
        """
        scores = []
        for group, group_raw in zip(groups, raw, strict=True):
            with naming_failures(self, [group]):
                scores.append(self.score(group, group_raw))
        return scores


@contextmanager
def naming_failures(reward: Reward, groups: Sequence[RewardInput], completion: int | None = None) -> Iterator[None]:
    """Turn any failure inside the block into a RewardError that names the reward, the records and the completion."""
    try:
        yield
    except RewardError:
        raise  # Named already, and more closely than is known here.
    except Exception as error:
        records = ", ".join(group.record_id for group in groups)
        where = f"problem_id {records}" + ("" if completion is None else f", completion {completion}")
        raise RewardError(f"Reward {reward.name!r} failed on {where}: {type(error).__name__}: {error}") from error


def _known_types(names: Sequence[str], owner: str) -> frozenset[ProblemType]:
    if not names:
        raise ValueError(f"{owner} has an empty list of problem_types, so it would never score; null stands for all.")
    try:
        return frozenset(ProblemType(name) for name in names)
    except ValueError as error:
        raise ValueError(f"{owner} is routed by problem_types to {list(names)}: {error}") from error
