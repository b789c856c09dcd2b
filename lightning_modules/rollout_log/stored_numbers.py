"""The numbers of stored rollouts, read back from their Parquet files.

Shapes: N completions, R rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_modules.rollout_log.stored_rows import RAW_PREFIX, TOTAL_REWARD
from rewards.errors import UserError

if TYPE_CHECKING:
    import pyarrow

_COLUMNS = ("step", "group", "problem_type", "completion_tokens", "truncated", TOTAL_REWARD)


@dataclass(frozen=True, kw_only=True)
class Means:
    """Some completions, summed up."""

    count: int
    """Completions."""
    groups: int
    """Groups that they belong to."""
    flat: float
    """Fraction of these groups whose total rewards all agree: they have no policy gradient."""
    truncated: float
    """Fraction of the completions."""
    tokens: float
    """Mean length."""
    scores: tuple[float, ...]
    """R + 1: mean total reward, then the mean raw score of each reward; NaN where nothing was scored."""


@dataclass(frozen=True, kw_only=True)
class StoredNumbers:
    """What the files hold about N completions, without their texts."""

    files: int
    """How many were read."""
    names: tuple[str, ...]
    """R names of rewards."""
    step: np.ndarray
    """int64 [N]."""
    group: np.ndarray
    """int64 [N]: which of the groups, from 0."""
    problem_type: np.ndarray
    """str [N]."""
    tokens: np.ndarray
    """int64 [N], of the completion."""
    truncated: np.ndarray
    """bool [N]."""
    scores: np.ndarray
    """float64 [N, R + 1]: the total, then the raw score of each reward; NaN where a file has no such reward."""

    def means(self, keys: np.ndarray) -> dict[Any, Means]:
        """Means of the completions that share a key; keys [N]."""
        return {key.item(): self._means(keys == key) for key in np.unique(keys)}

    def _means(self, chosen: np.ndarray) -> Means:
        groups, scores = np.unique(self.group[chosen]), self.scores[chosen]
        with np.errstate(invalid="ignore"):
            means = np.nansum(scores, axis=0) / np.isfinite(scores).sum(axis=0)
        return Means(
            count=len(scores),
            groups=len(groups),
            flat=float(self._flat_groups[groups].mean()),
            truncated=float(self.truncated[chosen].mean()),
            tokens=float(self.tokens[chosen].mean()),
            scores=tuple(means.tolist()),
        )

    @cached_property
    def _flat_groups(self) -> np.ndarray:
        """bool [groups]."""
        low, high = np.full(self.group.max() + 1, np.inf), np.full(self.group.max() + 1, -np.inf)
        np.minimum.at(low, self.group, self.scores[:, 0])
        np.maximum.at(high, self.group, self.scores[:, 0])
        return low == high


def read_numbers(folder: Path) -> StoredNumbers:
    """Read all `*.parquet` files of a folder that `RolloutStore` wrote; about 350 bytes of memory per completion.

    Raises:
        UserError: there is no such folder, it holds no Parquet file or no rows, or a file is not a RolloutStore's.
    """
    import pyarrow

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder (looked from {Path.cwd()}). Give the folder of a RolloutStore.")
    paths = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
    if not paths:
        raise UserError(
            f"{folder} holds no Parquet files. Give the folder of a RolloutStore: `rollouts` in the run's "
            "default_root_dir, unless the configuration says otherwise."
        )
    # A file without a reward that another one has gets nulls there.
    table = pyarrow.concat_tables(map(_read, paths), promote_options="default")
    if not len(table):
        raise UserError(f"The Parquet files in {folder} hold no rows; was the run stopped before its first step?")
    rewards = [name for name in table.column_names if name.startswith(RAW_PREFIX)]
    group, kind = (table[name].combine_chunks().dictionary_encode() for name in ("group", "problem_type"))
    return StoredNumbers(
        files=len(paths),
        names=tuple(name.removeprefix(RAW_PREFIX) for name in rewards),
        step=table["step"].to_numpy(),
        group=group.indices.to_numpy(),
        problem_type=np.array(kind.dictionary.to_pylist())[kind.indices.to_numpy()],
        tokens=table["completion_tokens"].to_numpy().astype(np.int64),
        truncated=table["truncated"].to_numpy(),
        scores=np.stack([table[name].to_numpy() for name in (TOTAL_REWARD, *rewards)], axis=1).astype(np.float64),
    )


def _read(path: Path) -> pyarrow.Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in _COLUMNS if name not in names]:
                raise UserError(
                    f"{path} is not a RolloutStore's: it has no column {', '.join(missing)}. Move it elsewhere."
                )
            return file.read([name for name in names if name in _COLUMNS or name.startswith(RAW_PREFIX)])
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}). Remove or replace it.") from error
