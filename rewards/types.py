"""What a reward is given and what the suite returns: text, counts and frames in, numbers out.

Shapes: B prompts, G completions per prompt, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from rewards.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

DataType = Literal["video", "image", "text"]
EncoderDtype = Literal["float32", "bfloat16", "float16"]
"""Of the weights and the computation of an image-text encoder."""


class ProblemType(StrEnum):
    """The five kinds of question in the VideoRFT data; the value is the spelling used in records."""

    MULTIPLE_CHOICE = "multiple choice"
    NUMERICAL = "numerical"
    OCR = "OCR"
    FREE_FORM = "free-form"
    REGRESSION = "regression"

    @classmethod
    def _missing_(cls, value: object) -> None:
        """Give `ProblemType(value)` an error that lists what is allowed."""
        raise UserError(f"problem_type is {value!r}; it must be one of {', '.join(repr(str(item)) for item in cls)}.")


@dataclass(frozen=True, kw_only=True)
class RewardInput:
    """One group: a question and all G completions sampled for it."""

    record_id: str
    """`problem_id` of the record, for error messages and stored breakdowns."""
    problem_type: ProblemType
    problem: str
    """The question as the model read it, without the media."""
    solution: str
    """The gold answer with its tags, `<answer>...</answer>`."""
    completions: tuple[str, ...]
    """G decoded completions, end-of-sequence token removed."""
    completion_tokens: tuple[int, ...]
    """G token counts, end-of-sequence token included."""
    truncated: tuple[bool, ...]
    """G flags: the completion reached the token limit without an end-of-sequence token."""
    frames: Tensor | None = None
    """The frames that the policy saw, uint8 [F, 3, H, W]; None for a text-only record."""
    shuffled_completions: tuple[str, ...] | None = None
    """Completions sampled for the same question on the frames in shuffled order; None unless the record is a video and
    a reward has a `shuffled_fraction`."""
    options: tuple[str, ...] = ()
    """Answer options as listed in the record; empty if there are none or if they are part of the question."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the record that are not part of the schema."""

    def __post_init__(self) -> None:
        sizes = (len(self.completions), len(self.completion_tokens), len(self.truncated))
        assert len(set(sizes)) == 1, f"completions, completion_tokens, truncated differ in length: {sizes}"


@dataclass(frozen=True, kw_only=True)
class RewardBreakdown:
    """Scores of a batch of groups. All groups hold the same number of completions."""

    total: Tensor
    """float32 [B, G]: the sum of the contributions; see `rewards.suite` for the formula."""
    components: Mapping[str, Tensor]
    """Reward name -> raw score before weight and gate, float32 [B, G]."""
    contributions: Mapping[str, Tensor]
    """Reward name -> what it adds to `total` after gate, truncation, normalization and weight, float32 [B, G]; also
    "truncation" -> minus the penalty, if truncated completions are penalized."""
    seconds: Mapping[str, float]
    """Reward name -> wall time spent on it for this batch."""
