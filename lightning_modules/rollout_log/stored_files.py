"""Reads the numbers of stored rollouts back, a thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_modules.rollout_log.stored_rows import RAW_PREFIX, TOTAL_REWARD

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 1024
_NUMBERS = ("step", "group", "problem_type", "completion_tokens", "truncated", TOTAL_REWARD)


@dataclass(frozen=True, kw_only=True)
class StoredNumbers:
    """N consecutive rows that begin and end where a group does."""

    step: np.ndarray
    """int64 [N]."""
    problem_type: np.ndarray
    """str [N]."""
    tokens: np.ndarray
    """int64 [N], of the completion."""
    truncated: np.ndarray
    """bool [N]."""
    scores: np.ndarray
    """float64 [N, R + 1]: the total, then the raw score of each reward; NaN where the file has no such reward."""
    group_starts: np.ndarray
    """int64: the first row of each group."""


def parquet_files(folder: Path) -> list[Path]:
    """All Parquet files of a folder, by name.

    Raises:
        ValueError: there is no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder (looked from {Path.cwd()}). Give the folder of a RolloutStore.")
    paths = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
    if not paths:
        raise ValueError(
            f"{folder} holds no Parquet files. Give the folder of a RolloutStore: `rollouts` in the run's "
            "default_root_dir, unless the configuration says otherwise."
        )
    return paths


def stored_reward_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Names of all rewards in the files, in the order of first appearance.

    Raises:
        ValueError: a file is no Parquet file, or not one of a RolloutStore.
    """
    names: dict[str, None] = {}
    for path in paths:
        with _opened(path) as file:
            columns = file.schema_arrow.names
        names.update((name.removeprefix(RAW_PREFIX), None) for name in columns if name.startswith(RAW_PREFIX))
    return tuple(names)


def read_numbers(path: Path, names: Sequence[str]) -> Iterator[StoredNumbers]:
    """One file in order, in parts of about `BATCH_ROWS` rows; `names` are those of the R rewards."""
    import pyarrow

    wanted = [*_NUMBERS, *(RAW_PREFIX + name for name in names)]
    with _opened(path) as file:
        columns = [name for name in wanted if name in file.schema_arrow.names]
        rest: pyarrow.Table | None = None
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            part = pyarrow.Table.from_batches([batch])
            table = part if rest is None else pyarrow.concat_tables([rest, part])
            # The last group may go on in the next batch.
            end = int(_group_starts(table)[-1]) if len(table) else 0
            rest = table.slice(end)
            if end:
                yield _numbers(table.slice(0, end), names)
        if rest is not None and len(rest):
            yield _numbers(rest, names)


def _opened(path: Path) -> ParquetFile:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}). Remove or replace it.") from error
    missing = [name for name in _NUMBERS if name not in file.schema_arrow.names]
    if missing:
        file.close()
        raise ValueError(f"{path} is not a RolloutStore's: it has no column {', '.join(missing)}. Move it elsewhere.")
    return file


def _group_starts(table: pyarrow.Table) -> np.ndarray:
    groups = table["group"].to_numpy()
    return np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))


def _numbers(table: pyarrow.Table, names: Sequence[str]) -> StoredNumbers:
    absent = np.full(len(table), np.nan)
    columns = [TOTAL_REWARD, *(RAW_PREFIX + name for name in names)]
    scores = [table[name].to_numpy() if name in table.column_names else absent for name in columns]
    return StoredNumbers(
        step=table["step"].to_numpy(),
        problem_type=table["problem_type"].to_numpy().astype(str),
        tokens=table["completion_tokens"].to_numpy().astype(np.int64),
        truncated=table["truncated"].to_numpy().astype(bool),
        scores=np.stack(scores, axis=1).astype(np.float64),
        group_starts=_group_starts(table),
    )
