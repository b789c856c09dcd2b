"""A training batch as a file of tensors, numbers and text alone, which `torch.load(weights_only=True)` reads.

Shapes: B prompts, G completions per prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch
from torch import Tensor

from datamodules.types import EncodedPrompt, SFTBatch, VideoRecord, VisionInput
from datamodules.whole_files import whole_file
from lightning_modules.rollouts.types import Completion, RolloutGroup
from rewards.errors import UserError
from rewards.types import ProblemType

FORMAT = "videorft-batch-1"
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
            torch.save({"format": FORMAT, **_plain(self)}, file)
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
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise UserError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(stored, dict) or stored.pop("format", None) != FORMAT:
            raise UserError(f"{str(path)!r} is no batch of this version ({FORMAT}); give one from `nonfinite`.")
        return cls(
            **{
                **stored,
                "faults": tuple(stored["faults"]),
                "batches": [_sft_batch(batch) for batch in stored["batches"]],
                "groups": [_group(group) for group in stored["groups"]],
                "shuffled": [None if texts is None else tuple(texts) for texts in stored["shuffled"]],
            }
        )


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, records as JSON text, tensors detached and on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # a slice of a larger tensor would be written with all of it
    if isinstance(value, VideoRecord):
        return json.dumps(asdict(value), default=str)
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _record(text: str) -> VideoRecord:
    given = json.loads(text)
    options, kind = tuple(given["options"]), ProblemType(given["problem_type"])
    return VideoRecord(**{**given, "options": options, "problem_type": kind, "file": Path(given["file"])})


def _vision(given: Mapping[str, Tensor] | None) -> VisionInput | None:
    return None if given is None else VisionInput(**given)


def _sft_batch(given: Mapping[str, Any]) -> SFTBatch:
    records = [_record(text) for text in given["records"]]
    return SFTBatch(**{**given, "records": records, "vision": _vision(given["vision"])})


def _group(given: Mapping[str, Any]) -> RolloutGroup:
    prompt = given["prompt"]
    known = {"record": _record(prompt["record"]), "vision": _vision(prompt["vision"])}
    return RolloutGroup(
        prompt=EncodedPrompt(**{**prompt, **known}),
        completions=tuple(Completion(**completion) for completion in given["completions"]),
    )
