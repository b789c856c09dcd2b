"""Faults of one record that are not finite, for real runs."""

from lightning_modules.policy.policy import Policy
from tests.lightning_modules.module_runs import LetterReward


class PoisonedReward(LetterReward):
    """Infinite in float32 for one record."""

    def __init__(self, problem_id: str) -> None:
        super().__init__()
        self.problem_id = problem_id

    def score(self, group, raw):
        scores = super().score(group, raw)
        return [1e300, *scores[1:]] if group.record_id == self.problem_id else scores


def poisoned_targets(problem_id):
    """`Policy.target_statistics`, with log-probabilities that are no numbers for the batch of one record."""
    target_statistics = Policy.target_statistics

    def poisoned(self, batch):
        statistics = target_statistics(self, batch)
        factor = float("nan") if any(record.problem_id == problem_id for record in batch.records) else 1.0
        return statistics._replace(logprobs=statistics.logprobs * factor)

    return poisoned
