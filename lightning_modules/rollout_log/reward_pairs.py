"""How the rewards of a run agree with each other, from sums over completions.

Shapes: N completions, R rewards.
"""

from __future__ import annotations

import numpy as np


class RewardPairs:
    """Accumulates correlation and disagreement of R rewards; a pair is judged on completions that have both scores.

    Args:
        low, high: float64 [R], the range of each reward's raw scores over all completions.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self._middle = (low + high) / 2
        self._varies = high > low
        size = (len(low), len(low))
        self._count = np.zeros(size)
        self._sum, self._squares, self._products = np.zeros(size), np.zeros(size), np.zeros(size)
        self._opposed = np.zeros(size)

    def add(self, scores: np.ndarray) -> None:
        """Count N completions; raw scores [N, R], NaN where a reward has none."""
        valid = np.isfinite(scores)
        both = valid.astype(np.float64)
        # Centred, so that the sums of squares keep their precision.
        centred = np.where(valid, scores - self._middle, 0.0)
        self._count += both.T @ both
        self._sum += centred.T @ both  # [i, j]: of reward i where j has a score
        self._squares += np.square(centred).T @ both
        self._products += centred.T @ centred
        above, below = (scores > self._middle), (scores < self._middle)
        self._opposed += above.astype(np.float64).T @ below

    def correlation(self) -> np.ndarray:
        """[R, R]: Pearson's; NaN where a reward takes a single value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._sum / self._count
            deviation = np.sqrt(np.maximum(self._squares / self._count - np.square(mean), 0.0))
            covariance = self._products / self._count - mean * mean.T
            return self._where_both_vary(covariance / (deviation * deviation.T))

    def disagreement(self) -> np.ndarray:
        """[R, R]: share of completions with reward i above and reward j below the middle of its range."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._where_both_vary(self._opposed / self._count)

    def _where_both_vary(self, values: np.ndarray) -> np.ndarray:
        return np.where(np.outer(self._varies, self._varies) & np.isfinite(values), values, np.nan)
