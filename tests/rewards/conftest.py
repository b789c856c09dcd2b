from collections.abc import Callable, Sequence

import pytest

from rewards.answer_format import wrap_answer, wrap_think
from rewards.types import ProblemType, RewardInput


@pytest.fixture
def make_group() -> Callable[..., RewardInput]:
    """Builds a group from its answers: well-formed completions of 400 tokens unless told otherwise."""

    def build(
        answers: Sequence[str],
        *,
        gold: str = "A",
        tokens: Sequence[int] | None = None,
        problem_type: ProblemType = ProblemType.MULTIPLE_CHOICE,
        record_id: str = "7",
    ) -> RewardInput:
        return RewardInput(
            record_id=record_id,
            problem_type=problem_type,
            problem="Which one?",
            solution=wrap_answer(gold),
            completions=tuple(wrap_think("Let me look.") + wrap_answer(answer) for answer in answers),
            completion_tokens=tuple(tokens or [400] * len(answers)),
            truncated=(False,) * len(answers),
        )

    return build
