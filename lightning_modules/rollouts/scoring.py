"""From rollouts to rewards and to rows for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_modules.rollouts.sample import RolloutSample
from lightning_modules.rollouts.types import Completion, RolloutGroup
from rewards.accuracy import accuracy_reward
from rewards.answer_format import parse_response
from rewards.format import format_reward
from rewards.types import RewardBreakdown, RewardInput


def reward_input(group: RolloutGroup, shuffled_completions: tuple[str, ...] | None = None) -> RewardInput:
    """What the rewards see of a group, with what was sampled for its shuffled frames if anything was."""
    record = group.prompt.record
    return RewardInput(
        record_id=record.problem_id,
        problem_type=record.problem_type,
        problem=record.problem,
        solution=record.solution,
        completions=tuple(completion.text for completion in group.completions),
        completion_tokens=tuple(len(completion.token_ids) for completion in group.completions),
        truncated=tuple(completion.truncated for completion in group.completions),
        frames=group.prompt.frames,
        shuffled_completions=shuffled_completions,
        options=record.options,
        extra=record.extra,
    )


def scored_answer(group: RolloutGroup, completion: Completion) -> dict[str, Any]:
    """One JSON row: the record's fields, the completion, what was read from it and its scores."""
    record = group.prompt.record
    return {
        **record.extra,
        "problem_id": record.problem_id,
        "problem": record.problem,
        "problem_type": record.problem_type.value,
        "data_type": record.data_type,
        "data_source": record.data_source,
        "options": list(record.options),
        "path": record.path,
        "solution": record.solution,
        "completion": completion.text,
        "prediction": parse_response(completion.text).answer,
        "accuracy": accuracy_reward(record.problem_type, completion.text, record.solution),
        "format": format_reward(completion.text),
        "completion_tokens": len(completion.token_ids),
        "truncated": completion.truncated,
    }


def answer_sample(groups: Sequence[RolloutGroup], rows: Sequence[Mapping[str, Any]]) -> RolloutSample:
    """Evaluation answers, one per group, in the form that pictures are drawn of; they have no advantage."""
    scores = {name: torch.tensor([[float(row[name])] for row in rows]) for name in ("accuracy", "format")}
    total = scores["accuracy"] + scores["format"]
    breakdown = RewardBreakdown(total=total, components=scores, contributions=scores, seconds={})
    return RolloutSample(groups=list(groups), breakdown=breakdown, advantages=torch.zeros_like(total))
