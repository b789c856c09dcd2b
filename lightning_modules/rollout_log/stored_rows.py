"""The table that rollouts are stored in: one row per completion, the rows of a group next to each other.

Shapes: B prompts, G completions per prompt; of what is read back, N completions and R rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_modules.rollouts.sample import RolloutSample
from rewards.answer_format import parse_response
from rewards.errors import UserError

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
    breakdown, rows = sample.breakdown, []
    for number, group in enumerate(sample.groups):
        record = group.prompt.record
        for index, completion in enumerate(group.completions):
            place = (number, index)
            row = {
                "step": step,
                "rank": rank,
                "group": f"{step}-{rank}-{number}",
                "problem_id": record.problem_id,
                "problem_type": record.problem_type.value,
                "data_type": record.data_type,
                "data_source": record.data_source,
                "prompt": "\n".join([record.problem, *record.options]),
                "prompt_tokens": len(group.prompt.input_ids),
                "solution": record.solution,
                "completion_index": index,
                "completion": completion.text,
                "completion_tokens": len(completion.token_ids),
                "truncated": completion.truncated,
                "prediction": parse_response(completion.text).answer,
                "sampling_logprob_mean": completion.sampling_logprobs.mean().item(),
                "policy_logprob_mean": completion.policy_logprobs.mean().item(),
                "policy_logprob_sum": completion.policy_logprobs.sum().item(),
                "policy_logprob_min": completion.policy_logprobs.min().item(),
                "advantage": sample.advantages[place].item(),
                TOTAL_REWARD: breakdown.total[place].item(),
            }
            row |= {RAW_PREFIX + name: scores[place].item() for name, scores in breakdown.components.items()}
            row |= {CONTRIBUTION_PREFIX + name: added[place].item() for name, added in breakdown.contributions.items()}
            rows.append(row)
    return rows


def as_table(rows: Sequence[Row]) -> pyarrow.Table:
    """Rows as an Arrow table; its columns are the fixed ones and those of all scores in the rows."""
    import pyarrow

    scores = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    types = {**COLUMNS, **dict.fromkeys(scores, "float32")}
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(alias)) for name, alias in types.items()])
    return pyarrow.Table.from_pylist(list(rows), schema=schema)


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
