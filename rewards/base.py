"""What a reward is: a whole group in, one number per completion out. The suite owns weights and gates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rewards.types import RewardInput


class RewardError(RuntimeError):
    """A reward failed; the message names the reward and the records, the cause is attached."""


class Reward(ABC):
    """Base class of all rewards. A subclass sets `name`, perhaps `requires`, and writes `score`.

    Args:
        weight: factor of the score in the total; 0 measures the reward without training on it.
        gate: name of a reward of the suite; this one counts only where that one's raw score is above 0.
        name: name in logs and in the breakdown; the class's own name for itself if not given.
    """

    name: str = ""
    requires: tuple[str, ...] = ()
    """Names of the rewards of the suite whose raw scores this one reads."""

    def __init__(self, weight: float = 1.0, gate: str | None = None, name: str | None = None) -> None:
        self.weight = weight
        self.gate = gate
        if name is not None:
            self.name = name

    @abstractmethod
    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> Sequence[float]:
        """Score the G completions of one group.

        Args:
            group: the question and its completions.
            raw: name -> G raw scores, for each reward in `requires`.

        Returns:
            G finite numbers, before weight and gate.
        """

    def score_batch(
        self, groups: Sequence[RewardInput], raw: Sequence[Mapping[str, Sequence[float]]]
    ) -> Sequence[Sequence[float]]:
        """Score B groups at once; override it where one pass over the batch is cheaper, as with an encoder.

        Args:
            groups: B groups.
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
def naming_failures(reward: Reward, groups: Sequence[RewardInput]) -> Iterator[None]:
    """Turn any failure inside the block into a RewardError that names the reward and the groups' records."""
    try:
        yield
    except RewardError:
        raise  # Named already, and with fewer records than are known here.
    except Exception as error:
        records = ", ".join(group.record_id for group in groups)
        raise RewardError(
            f"Reward {reward.name!r} failed on problem_id {records}: {type(error).__name__}: {error}"
        ) from error
