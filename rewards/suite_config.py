"""How the rewards of a run are put together; the formula stands in `rewards.suite`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Normalization = Literal["sum_then_normalize", "per_reward"]
Truncation = Literal["keep", "zero", "penalize"]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """What the suite does besides adding up.

    Raises:
        ValueError: an unknown choice, a penalty without `truncation: penalize` or that without a penalty, or a penalty
            that is not finite and above 0.
    """

    normalization: Normalization = "sum_then_normalize"
    """sum_then_normalize: the total is the weighted sum, and only the advantage compares it within the group (GRPO).
    per_reward: each reward is standardized within its group before the weighted sum, so that no reward is drowned by
    one of larger spread (GDPO, arXiv 2601.05242; its second step is `advantage_scale: batch`)."""
    truncation: Truncation = "keep"
    """Completions that reached the token limit. keep: scored as they are. zero: every reward counts 0 for them.
    penalize: scored as they are, and `truncation_penalty` is subtracted from their total."""
    truncation_penalty: float | None = None
    """Subtracted from the total of a truncated completion with `truncation: penalize`, in units of the total; above
    0."""

    def __post_init__(self) -> None:
        _check_choice("normalization", self.normalization, get_args(Normalization))
        _check_choice("truncation", self.truncation, get_args(Truncation))
        if (self.truncation == "penalize") != (self.truncation_penalty is not None):
            raise ValueError(
                f"suite.truncation is {self.truncation!r} and suite.truncation_penalty is {self.truncation_penalty}; "
                "set both (truncation: penalize, truncation_penalty: 0.5) or leave the penalty null."
            )
        if self.truncation_penalty is not None and not 0 < self.truncation_penalty < math.inf:
            raise ValueError(
                f"suite.truncation_penalty is {self.truncation_penalty}; it is subtracted, so it must be above 0 and "
                "finite."
            )


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"suite.{name} is {given!r}; allowed are {', '.join(map(repr, allowed))}.")
