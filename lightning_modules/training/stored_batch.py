"""A training batch as a file of tensors, numbers, text and a few known classes, which `torch.load` reads safely.

Shapes: B prompts, G completions per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PosixPath
from pickle import UnpicklingError
from typing import Self

import torch
from torch import Tensor
from torch.serialization import safe_globals

from datamodules.types import BadRecord, EncodedPrompt, SFTBatch, VideoRecord, VisionInput
from datamodules.whole_files import whole_file
from lightning_modules.rollouts.types import Completion, RolloutGroup
from rewards.errors import UserError
from rewards.types import ProblemType

FORMAT = "videorft-batch-2"
"""Stands in every file; a later form gets another number."""


@dataclass(frozen=True, kw_only=True)
class StoredBatch:
    """What one rank had of one optimizer step: micro-batches of fine-tuning, or a rollout."""

    step: int
    """The optimizer step that it was for, from 1."""
    rank: int
    world_size: int
    faults: tuple[str, ...]
    """Why it was stored."""
    config: str | None
    """All settings of the run as YAML; None for a run from Python."""
    batches: Sequence[SFTBatch]
    """Of fine-tuning; else empty."""
    groups: Sequence[RolloutGroup]
    """B groups of G completions of a rollout; else empty."""
    shuffled: Sequence[tuple[str, ...] | None]
    """Per group the completions sampled on shuffled frames, for the rewards."""
    advantages: Tensor | None
    """float [B, G]; None where the rewards were not finite, and for fine-tuning."""

    @property
    def records(self) -> tuple[str, ...]:
        """File, line and problem_id of every record."""
        found = [record for batch in self.batches for record in batch.records]
        return tuple(record.where for record in [*found, *(group.prompt.record for group in self.groups)])

    def save(self, folder: Path) -> Path:
        """Write `stepSTEP-rankRANK.pt` in `folder`, whole or not at all; returns its path."""
        path = folder / f"step{self.step:06d}-rank{self.rank}.pt"
        with whole_file(path, "wb") as file:
            torch.save({"format": FORMAT, "stored": self}, file)
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Raises:
            UserError: there is no such file, or it is no stored batch.
        """
        if not path.is_file():
            raise UserError(f"{str(path)!r} is not a file (looked from {Path.cwd()}); give one from `nonfinite`.")
        try:
            with safe_globals(_CLASSES):
                stored = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise UserError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise UserError(f"{str(path)!r} is no batch of this version ({FORMAT}); give one from `nonfinite`.")
        return stored["stored"]


_CLASSES = [
    *(StoredBatch, SFTBatch, RolloutGroup, Completion, EncodedPrompt, VisionInput, BadRecord),
    *(VideoRecord, ProblemType, PosixPath),
]
"""All that a file may hold besides tensors and plain values; none of them does anything when it is made."""
