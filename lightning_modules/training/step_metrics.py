"""What one optimizer step logs, over all its micro-batches and all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lightning_modules.functional.masking import WeightedMean


class StepMetrics:
    """Collects parts that add up, so that a split over micro-batches and ranks does not show in what is logged.

    Means are weighted by what they are means of, deviations are those of all values together, counts are sums and
    maxima are maxima. All ranks must add the same names.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._values: dict[str, Callable[..., float]] = {}
        """Name -> what makes its value of its sums."""
        self._maxima: dict[str, Tensor] = {}

    def add_mean(self, name: str, mean: WeightedMean) -> None:
        """A mean, as parts of a sum and of a weight."""
        self._add(name, _mean, mean.total, mean.weight)

    def add_values(self, name: str, values: Tensor) -> None:
        """The mean of values of any shape."""
        self._add(name, _mean, values.double().sum(), values.numel())

    def add_deviation(self, name: str, values: Tensor) -> None:
        """The standard deviation, with Bessel's correction, of values of any shape."""
        wide = values.double()
        self._add(name, _deviation, wide.sum(), wide.square().sum(), values.numel())

    def add_count(self, name: str, count: Tensor | float) -> None:
        """A sum over micro-batches and ranks."""
        self._add(name, float, count)

    def add_maximum(self, name: str, value: Tensor) -> None:
        """A maximum over micro-batches and ranks."""
        wide = value.detach().double()
        self._maxima[name] = torch.maximum(self._maxima[name], wide) if name in self._maxima else wide

    def reduced(self, strategy: Strategy) -> dict[str, float]:
        """Value by name, the same on all ranks, which call this together: one reduction of sums, one of maxima."""
        names, maxima = sorted(self._sums), sorted(self._maxima)
        parts = torch.cat([self._sums[name].cpu() for name in names])
        sums = iter(strategy.reduce(parts.to(strategy.root_device), reduce_op="sum").tolist())
        result = {name: self._values[name](*(next(sums) for _ in self._sums[name])) for name in names}
        if maxima:
            largest = torch.stack([self._maxima[name].cpu() for name in maxima]).to(strategy.root_device)
            result |= dict(zip(maxima, strategy.reduce(largest, reduce_op="max").tolist(), strict=True))
        return result

    def _add(self, name: str, value_of: Callable[..., float], *sums: Tensor | float) -> None:
        parts = torch.stack([torch.as_tensor(part, dtype=torch.float64).detach() for part in sums])
        self._sums[name] = self._sums[name] + parts if name in self._sums else parts
        self._values[name] = value_of


def _mean(total: float, weight: float) -> float:
    return total / weight if weight else 0.0


def _deviation(total: float, squares: float, count: float) -> float:
    # Rounding can leave a little less than nothing.
    return math.sqrt(max(0.0, squares - total * total / count) / (count - 1)) if count > 1 else 0.0
