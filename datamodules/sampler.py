"""The order of records, exact to resume: a function of (seed, epoch) and of how many records were trained on.

The order is drawn for all ranks together; rank r takes every world_size-th record from the r-th on. A step of all
ranks thus takes the next `batch_size * world_size` records of that order, and one number says how far training is.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from rewards.errors import UserError

_log = logging.getLogger(__name__)


def sample_seed(seed: int, epoch: int, key: str | int, member: int = 0) -> int:
    """A seed in [0, 2**63) for one record in one epoch, the same in every process, on every machine.

    Args:
        seed: the run's seed.
        epoch: from 0.
        key: the record's problem id or index; 7 and "7" give the same seed.
        member: tells the uses for one record apart, such as the completions of a group.
    """
    text = "\0".join((str(seed), str(epoch), str(member), str(key)))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(eq=False)
class ResumableSampler(DistributedSampler[int]):
    """Record indices of one rank for one epoch, from any place of it.

    Training (`drop_last=True`): all ranks get equally many records in whole batches, and the tail of the order that
    does not fill a batch on every rank is left out; shuffled, it is another tail in each epoch.
    Evaluation (`drop_last=False`): every record is visited exactly once over the ranks, none is repeated. Ranks may
    differ by one record, so code between two batches must not wait for other ranks.

    The sampler runs ahead of training (workers prefetch), so it cannot know how far training is: `state_dict` takes
    the trainer's counts. Lightning creates its first iterator before it calls `set_epoch`: place a resumed sampler
    with `load_state_dict` before the loader is handed over.

    It is a `DistributedSampler` by name alone: a Trainer deals out what any other sampler gives once more, so that of
    N ranks each would see an N-th of its own part and the rest be left out.

    Raises:
        UserError: a number is out of range, or `drop_last` leaves nothing.
    """

    num_records: int
    """Records of the data set."""
    _: KW_ONLY
    batch_size: int
    """Records per rank and batch."""
    seed: int = 0
    """Of the order; the same on all ranks."""
    rank: int = 0
    """This process."""
    world_size: int = 1
    shuffle: bool = True
    """Another order in every epoch; else file order."""
    drop_last: bool = True
    """Leave out what does not fill a batch on every rank."""
    epoch: int = field(default=0, init=False)
    _consumed: int = field(default=0, init=False)
    _batches_before: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("num_records", "batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank is {self.rank}; it must be from 0 to world_size - 1 = {self.world_size - 1}.")
        if self.drop_last and self.num_records < self.global_batch:
            raise UserError(
                f"{self.num_records} records do not fill one batch on every rank (batch_size {self.batch_size} x "
                f"world_size {self.world_size} = {self.global_batch}). Use a smaller batch_size, fewer devices or more "
                "records."
            )

    @property
    def global_batch(self) -> int:
        """Records per step over all ranks."""
        return self.batch_size * self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of `epoch`; the current epoch keeps its place. Lightning calls this in every epoch."""
        if epoch != self.epoch:
            self.start_at(epoch, 0)

    def start_at(self, epoch: int, consumed: int) -> None:
        """Let the next iteration of `epoch` begin after its first `consumed` records (counted over all ranks).

        Where not one batch of the epoch is left, the next one begins.
        """
        if epoch < 0 or consumed < 0:
            raise UserError(f"epoch is {epoch} and consumed {consumed}; both must be at least 0.")
        if self._end(consumed) <= consumed:
            epoch, consumed = epoch + 1, 0
        self.epoch = epoch
        self._consumed = consumed
        self._batches_before = consumed // self.global_batch

    def state_dict(self, *, epoch: int, batches: int) -> dict[str, Any]:
        """How far training is, for `load_state_dict` of a sampler over the same records.

        Args:
            epoch: the epoch being trained, from 0. (Lightning: `fit_loop.epoch_progress.current.ready - 1`; its
                `current_epoch` already is the next one when the hooks at an epoch's end save.)
            batches: batches of it that each rank has trained on. (Lightning: `batch_progress.current.ready`.)
        """
        resumed, before = (self._consumed, self._batches_before) if epoch == self.epoch else (0, 0)
        consumed = resumed + (batches - before) * self.global_batch
        if consumed >= self._end(resumed):
            epoch, consumed, batches = epoch + 1, 0, 0
        return {
            "epoch": epoch,
            "consumed": consumed,
            "batches": batches,
            "num_records": self.num_records,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: dict[str, Any], *, may_lack: int = 0) -> None:
        """Continue where `state` was taken, on any number of ranks.

        With another global batch than before, the epoch's remaining records are still visited once each, and its
        length counts the batches that were trained on.

        Args:
            state: from `state_dict`.
            may_lack: so many records may be gone since, because they were bad. The rest has another order then: some
                records of this epoch come again and others are left out, which is said in a warning.

        Raises:
            UserError: the state belongs to another number of records, seed or order.
        """
        lacking = state["num_records"] - self.num_records
        if 0 < lacking <= may_lack:
            _log.warning(
                "The data has %d records, %d fewer than in the checkpoint. The rest of this epoch is drawn from "
                "another order: some records come again and others are left out.",
                self.num_records,
                lacking,
            )
            state = {**state, "num_records": self.num_records}
        for name in ("num_records", "seed", "shuffle"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"The checkpoint was trained with {name} {state[name]}, this run has {getattr(self, name)}; the "
                    "order of records would differ. Use the same data files, seed and shuffle, or start a new run from "
                    "the checkpoint's weights."
                )
        self.start_at(state["epoch"], state["consumed"])
        if self.epoch == state["epoch"]:
            self._batches_before = state["batches"]

    def __len__(self) -> int:
        """Records of this rank in the whole epoch: Lightning counts a resumed epoch from its beginning."""
        return self._batches_before * self.batch_size + len(self._positions())

    def __iter__(self) -> Iterator[int]:
        positions = self._positions()
        return iter(self._order()[positions.start : positions.stop : positions.step].tolist())

    def _order(self) -> Tensor:
        """The epoch's records over all ranks, int64 [num_records]."""
        if not self.shuffle:
            return torch.arange(self.num_records)
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, "order of records"))
        return torch.randperm(self.num_records, generator=generator)

    def _positions(self) -> range:
        """This rank's places in the order that are still to come."""
        return range(self._consumed + self.rank, self._end(self._consumed), self.world_size)

    def _end(self, start: int) -> int:
        """The place that the batches from `start` on reach."""
        left = max(self.num_records - start, 0)
        return start + (left - left % self.global_batch if self.drop_last else left)
