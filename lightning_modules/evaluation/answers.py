"""Answers to the questions of a batch: written by the model, or the likeliest option letter; and their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from datamodules.evaluation.benchmark_datamodule import BenchmarkBatch, BenchmarkItem, ItemKey
from datamodules.sampler import sample_seed
from datamodules.types import EncodedPrompt, VideoRecord
from lightning_modules.policy.policy import Policy
from lightning_modules.rollouts.choice_scoring import likeliest, option_logprobs
from lightning_modules.rollouts.types import RolloutEngine, SamplingConfig
from rewards.answer_format import parse_response
from rewards.errors import UserError
from rewards.evaluation.predictions import Outcome, Prediction, gold_answer, grade
from rewards.evaluation.scoring import BenchmarkScoring, ScoringRule, predicted_answer
from rewards.options import option_letters
from rewards.types import ProblemType

ChoiceScoring = Literal["generate", "likelihood"]
Asked = tuple[BenchmarkItem, EncodedPrompt]
"""A question that can be asked, and its prompt."""


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """Answers questions one way for a whole run; an answer depends on its own batch and on nothing else."""

    policy: Policy
    engine: RolloutEngine
    sampling: SamplingConfig
    choice_scoring: ChoiceScoring
    answer_prefix: str
    """With likelihood, what stands between the prompt and the option letter."""
    seed: int
    device: torch.device

    def outcomes(self, batch: BenchmarkBatch) -> dict[ItemKey, Outcome]:
        """What became of each item of a batch whose prompts have positions and are on the device."""
        outcomes: dict[ItemKey, Outcome] = {}
        written: list[Asked] = []
        chosen: list[Asked] = []
        letters = []
        for item in batch.items:
            if item.prompt is None:
                outcomes[item.key] = Outcome(failure=item.failure)
            elif self.choice_scoring == "generate" or item.record.problem_type is not ProblemType.MULTIPLE_CHOICE:
                written.append((item, item.prompt))
            else:
                try:
                    letters.append(_offered_letters(item.record))
                except ValueError as error:
                    outcomes[item.key] = Outcome(failure=str(error))
                    continue
                chosen.append((item, item.prompt))
        return outcomes | self._written(written, batch) | self._chosen(chosen, letters)

    def _written(self, asked: Sequence[Asked], batch: BenchmarkBatch) -> dict[ItemKey, Outcome]:
        if not asked:
            return {}
        prompts = batch.prompts
        if prompts is None or len(asked) < len(prompts):
            prompts = self.policy.collate([prompt for _, prompt in asked]).to(self.device)
        seeds = [sample_seed(self.seed, 0, f"{item.key.benchmark}/{item.record.problem_id}") for item, _ in asked]
        groups = self.engine.generate(prompts, self.sampling, group_size=1, seeds=seeds)
        outcomes = {}
        for (item, prompt), group in zip(asked, groups, strict=True):
            (completion,) = group.completions
            outcomes[item.key] = replace(
                _seen(prompt),
                completion=completion.text,
                answer=predicted_answer(completion.text),
                well_formed=parse_response(completion.text).well_formed,
                completion_tokens=len(completion.token_ids),
                truncated=completion.truncated,
            )
        return outcomes

    def _chosen(self, asked: Sequence[Asked], letters: Sequence[Sequence[str]]) -> dict[ItemKey, Outcome]:
        if not asked:
            return {}
        prompts = [prompt for _, prompt in asked]
        scored = option_logprobs(self.policy, prompts, letters, answer_prefix=self.answer_prefix, device=self.device)
        return {
            item.key: replace(_seen(prompt), answer=likeliest(logprobs), option_logprobs=logprobs)
            for (item, prompt), logprobs in zip(asked, scored, strict=True)
        }


def prediction_of(
    item: BenchmarkItem, outcome: Outcome, scoring: BenchmarkScoring, rules: Sequence[ScoringRule]
) -> Prediction:
    """The prediction of an item, scored under each rule."""
    record = item.record
    categories, gold = scoring.categories(record.extra), gold_answer(record.solution)
    kind = record.problem_type
    grades = grade(scoring, rules, problem_type=kind, categories=categories, answer=outcome.answer, gold=gold)
    return Prediction(
        benchmark=item.key.benchmark,
        index=item.key.index,
        problem_id=record.problem_id,
        problem_type=kind.value,
        data_type=record.data_type,
        question=record.problem,
        options=list(record.options),
        gold=gold,
        path=record.path,
        start=record.extra.get("start"),
        end=record.extra.get("end"),
        categories=categories,
        extra=dict(record.extra),
        **vars(outcome),
        **vars(grades),
    )


def _seen(prompt: EncodedPrompt) -> Outcome:
    frames = None if prompt.frames is None else len(prompt.frames)
    return Outcome(num_frames=frames, prompt_tokens=len(prompt.input_ids))


def _offered_letters(record: VideoRecord) -> tuple[str, ...]:
    letters = option_letters(record.options, record.problem, where=record.where)
    gold = gold_answer(record.solution)
    if gold not in letters:
        raise UserError(
            f"{record.where}: the right answer {gold!r} is none of the letters {', '.join(letters)}, so scoring them "
            "cannot give it. Write the letter into the record, or generate answers instead."
        )
    return letters
