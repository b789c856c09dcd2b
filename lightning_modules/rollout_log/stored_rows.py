"""The table that rollouts are stored in: one row per completion, the rows of a group next to each other.

Shapes: B prompts, G completions per prompt, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_modules.rollouts.sample import RolloutSample
from lightning_modules.rollouts.types import Completion, RolloutGroup
from rewards.answer_format import parse_response

if TYPE_CHECKING:
    import pyarrow

TOTAL_REWARD = "reward"
"""Column of the sum of the contributions."""
RAW_PREFIX, CONTRIBUTION_PREFIX = "reward/", "contribution/"
"""Before a name of the breakdown's components (raw scores) and contributions (what is added up)."""

COLUMNS = {
    "step": "int64",  # optimizer steps taken when the batch was done: the global_step of a checkpoint that contains it
    "rank": "int32",
    "group": "string",  # STEP-RANK-NUMBER, unique in a run
    "problem_id": "string",
    "problem_type": "string",
    "data_type": "string",
    "data_source": "string",
    "prompt": "string",  # question and options, without system message, template and media
    "prompt_tokens": "int32",  # media tokens included
    "solution": "string",
    "completion_index": "int32",  # from 0 within the group
    "completion": "string",
    "completion_tokens": "int32",  # end-of-sequence token included
    "truncated": "bool",
    "prediction": "string",  # text of the answer element, null without one
    "sampling_logprob_mean": "float32",  # under the distribution that was sampled from, per token
    "policy_logprob_mean": "float32",  # under the full softmax at the sampling temperature, per token
    "policy_logprob_sum": "float32",
    "policy_logprob_min": "float32",  # of the least likely token
    "advantage": "float32",
    TOTAL_REWARD: "float32",
}
"""Fixed columns and their Arrow types. One column per component and contribution of the breakdown follows."""

Row = dict[str, Any]


def stored_rows(sample: RolloutSample, *, step: int, rank: int) -> list[Row]:
    """The B * G rows of one sample, in order."""
    return [
        {
            "step": step,
            "rank": rank,
            "group": f"{step}-{rank}-{number}",
            **_prompt_fields(group),
            "completion_index": index,
            **_completion_fields(completion),
            **_score_fields(sample, number, index),
        }
        for number, group in enumerate(sample.groups)
        for index, completion in enumerate(group.completions)
    ]


def as_table(rows: Sequence[Row]) -> pyarrow.Table:
    """Rows as an Arrow table; its columns are the fixed ones and those of all scores in the rows."""
    import pyarrow

    scores = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    types = {**COLUMNS, **dict.fromkeys(scores, "float32")}
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(alias)) for name, alias in types.items()])
    return pyarrow.Table.from_pylist(list(rows), schema=schema)


def _prompt_fields(group: RolloutGroup) -> Row:
    record = group.prompt.record
    return {
        "problem_id": record.problem_id,
        "problem_type": record.problem_type.value,
        "data_type": record.data_type,
        "data_source": record.data_source,
        "prompt": "\n".join([record.problem, *record.options]),
        "prompt_tokens": len(group.prompt.input_ids),
        "solution": record.solution,
    }


def _completion_fields(completion: Completion) -> Row:
    return {
        "completion": completion.text,
        "completion_tokens": len(completion.token_ids),
        "truncated": completion.truncated,
        "prediction": parse_response(completion.text).answer,
        "sampling_logprob_mean": completion.sampling_logprobs.mean().item(),
        "policy_logprob_mean": completion.policy_logprobs.mean().item(),
        "policy_logprob_sum": completion.policy_logprobs.sum().item(),
        "policy_logprob_min": completion.policy_logprobs.min().item(),
    }


def _score_fields(sample: RolloutSample, number: int, index: int) -> Row:
    breakdown, place = sample.breakdown, (number, index)
    return {
        "advantage": sample.advantages[place].item(),
        TOTAL_REWARD: breakdown.total[place].item(),
        **{RAW_PREFIX + name: scores[place].item() for name, scores in breakdown.components.items()},
        **{CONTRIBUTION_PREFIX + name: scores[place].item() for name, scores in breakdown.contributions.items()},
    }
