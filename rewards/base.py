"""What a reward is: a whole group in, one number per completion out. Weights, gates and routing belong to the suite.

Shapes: G completions per prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rewards.errors import UserError
from rewards.types import ProblemType, RewardInput


class RewardError(RuntimeError):
    """A reward failed; the message names the reward, the record and, if known, the completion."""


class Reward(ABC):
    """Base class of all rewards. A subclass sets `name` and implements `score`.

    Args:
        weight: factor of the score in the total; 0 measures the reward without training on it.
        gate: name of another reward of the suite; this one counts only where that one's raw score is above 0.
        name: name in logs and in the breakdown; null takes the name of the class.
        problem_types: the kinds of question that are scored, spelled as in records; all others score 0. null scores
            all kinds.

    Raises:
        UserError: a problem type is unknown, or the list of them is empty.
    """

    name: str = ""
    requires: tuple[str, ...] = ()
    """Names of the rewards of the suite whose raw scores `score` reads."""
    problem_types: frozenset[ProblemType] | None = None
    """The kinds of question that are scored; None for all."""
    shuffled_fraction: float = 0.0
    """Completions to sample for the same question with the frames of its video in shuffled order, as a fraction of the
    group size; `RewardInput.shuffled_completions` holds them. 0 needs none. The largest of the suite is sampled."""

    def __init__(
        self,
        weight: float = 1.0,
        gate: str | None = None,
        name: str | None = None,
        problem_types: list[str] | None = None,
    ) -> None:
        self.weight = weight
        self.gate = gate
        if name is not None:
            self.name = name
        if problem_types is not None:
            self.problem_types = _known_types(problem_types, f"Reward {self.name or type(self).__name__!r}")

    def applies_to(self, problem_type: ProblemType) -> bool:
        """Whether questions of this kind are scored."""
        return self.problem_types is None or problem_type in self.problem_types

    def prepare(self) -> None:  # noqa: B027 - optional for subclasses
        """Called once before training: load what scoring needs, so that a missing file stops the run at its start."""

    @abstractmethod
    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> Sequence[float]:
        """Score the G completions of one group.

        Args:
            group: the question and its completions.
            raw: name -> G raw scores, for each reward in `requires`.

        Returns:
            G finite numbers, before weight and gate.
        """


@contextmanager
def naming_failures(reward: Reward, group: RewardInput, completion: int | None = None) -> Iterator[None]:
    """Turn any failure inside the block into a RewardError that names the reward, the record and the completion."""
    try:
        yield
    except RewardError:
        raise  # An inner block has named the completion already.
    except Exception as error:
        where = f"problem_id {group.record_id}" + ("" if completion is None else f", completion {completion}")
        raise RewardError(f"Reward {reward.name!r} failed on {where}: {type(error).__name__}: {error}") from error


def _known_types(names: Sequence[str], owner: str) -> frozenset[ProblemType]:
    if not names:
        raise UserError(f"{owner} has an empty list of problem_types, so it would never score; null stands for all.")
    try:
        return frozenset(ProblemType(name) for name in names)
    except ValueError as error:
        raise UserError(f"{owner} has problem_types {list(names)}: {error}") from error
