"""A step logs the same whether one rank or micro-batch saw all of it or two saw unequal parts."""

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_modules.functional.masking import WeightedMean
from lightning_modules.training.step_metrics import StepMetrics
from tests.lightning_modules.module_runs import data_module, grpo_module, sft_module, trainer


def add_first_part(metrics):
    metrics.add_mean("kl", WeightedMean(total=torch.tensor(3.0), weight=torch.tensor(3)))  # mean 1 of 3 tokens
    metrics.add_values("reward", torch.tensor([[1.0, 3.0]]))
    metrics.add_deviation("std", torch.tensor([[1.0, 3.0]]))
    metrics.add_count("redrawn", 2)
    metrics.add_maximum("max", torch.tensor(2.0))


def add_second_part(metrics):
    metrics.add_mean("kl", WeightedMean(total=torch.tensor(5.0), weight=torch.tensor(1)))  # mean 5 of 1 token
    metrics.add_values("reward", torch.tensor([[5.0]]))
    metrics.add_deviation("std", torch.tensor([[5.0]]))
    metrics.add_count("redrawn", 3)
    metrics.add_maximum("max", torch.tensor(7.0))


# kl (3 + 5) / 4 tokens, not (1 + 5) / 2. Rewards 1, 3, 5: mean 3, variance (4 + 0 + 4) / 2 = 4.
EXPECTED = {"kl": 2.0, "reward": 3.0, "std": 2.0, "redrawn": 5.0, "max": 7.0}


class Recorder(SingleDeviceStrategy):
    """Keeps what its rank gives to each reduction."""

    def __init__(self):
        super().__init__(device=torch.device("cpu"))
        self.given = []

    def reduce(self, tensor, group=None, reduce_op="mean"):
        self.given.append((reduce_op, tensor.clone()))
        return tensor


class WithAnotherRank(Recorder):
    """Reduces with what another rank gave, in the same order."""

    def __init__(self, other):
        super().__init__()
        self.other = iter(other)

    def reduce(self, tensor, group=None, reduce_op="mean"):
        super().reduce(tensor, group, reduce_op)
        kind, theirs = next(self.other)
        assert kind == reduce_op
        return {"sum": torch.add, "max": torch.maximum}[reduce_op](tensor, theirs)


def test_micro_batches_add_up():
    metrics, strategy = StepMetrics(), Recorder()
    add_first_part(metrics)
    add_second_part(metrics)
    assert metrics.reduced(strategy) == pytest.approx(EXPECTED)


def test_ranks_add_up_in_two_reductions():
    theirs, mine, recorder = StepMetrics(), StepMetrics(), Recorder()
    add_first_part(theirs)
    add_second_part(mine)
    theirs.reduced(recorder)
    strategy = WithAnotherRank(recorder.given)
    assert mine.reduced(strategy) == pytest.approx(EXPECTED)
    assert [kind for kind, _ in strategy.given] == ["sum", "max"]


def test_a_rank_without_a_token_does_not_count_and_no_token_at_all_is_zero():
    metrics = StepMetrics()
    metrics.add_mean("kl", WeightedMean(total=torch.tensor(0.0), weight=torch.tensor(0)))
    assert metrics.reduced(Recorder()) == {"kl": 0.0}
    add_first_part(metrics)
    assert metrics.reduced(Recorder())["kl"] == 1.0


def test_what_is_not_a_number_shows():
    metrics = StepMetrics()
    add_first_part(metrics)
    metrics.add_values("reward", torch.tensor([float("nan")]))
    metrics.add_maximum("max", torch.tensor(float("nan")))
    metrics.add_maximum("max", torch.tensor(9.0))
    values = metrics.reduced(Recorder())
    assert values["reward"] != values["reward"] and values["max"] != values["max"]


# GRPO: two for the denominators and the number of micro-batches before the update, two for what is logged after it.
@pytest.mark.parametrize(
    ("make", "train_format", "expected"), [(sft_module, "sft", 1), (grpo_module, "prompts", 4)], ids=["sft", "grpo"]
)
def test_a_step_takes_few_reductions(tiny_folder, mixed_data, tmp_path, monkeypatch, make, train_format, expected):
    calls, counts, reduce = [], [], SingleDeviceStrategy.reduce
    monkeypatch.setattr(
        SingleDeviceStrategy, "reduce", lambda self, *args, **kwargs: calls.append(0) or reduce(self, *args, **kwargs)
    )
    counting = LambdaCallback(on_train_batch_start=lambda *_: counts.append(len(calls)))
    data = data_module(tiny_folder, mixed_data, train_format=train_format, batch_size=2)
    options = {"max_steps": 3, "limit_val_batches": 0, "enable_checkpointing": False, "callbacks": [counting]}
    trainer(tmp_path, **options).fit(make(tiny_folder), data)
    first, second, third = counts
    assert second - first == third - second == expected
