"""What a sample is on its way: record -> (clip) -> encoded prompt -> batch; the clip is in `datamodules.video.types`.

Shapes: B prompts, P prompt tokens, L tokens of a row, F frames, N vision patches, n media items,
T temporal patches, D = 3 * temporal_patch_size * patch_size**2 values per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from datamodules.video.types import printable
from rewards.types import DataType, ProblemType


@dataclass(frozen=True, kw_only=True)
class BadRecord:
    """A record that could not be used, and in whose place another one was taken."""

    file: str
    line: int
    problem_id: str
    path: str | None
    """Its media, relative to the data root."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """One validated line of a data file. Fields that the schema does not know are kept in `extra`."""

    problem_id: str
    """Unique within its file; integers are turned into strings."""
    problem: str
    data_type: DataType
    problem_type: ProblemType
    solution: str
    """The gold answer with its tags, `<answer>...</answer>`."""
    process: str | None = None
    """Chain of thought with its tags, `<think>...</think>`; needed by supervised fine-tuning only."""
    options: tuple[str, ...] = ()
    path: str | None = None
    """Media file relative to the data root; None exactly when `data_type` is "text"."""
    data_source: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    file: Path
    """The data file that the record comes from."""
    line: int
    """Line (JSONL, from 1) or element (JSON list, from 1) within that file."""

    @property
    def where(self) -> str:
        """`file:line (problem_id ...)`, the prefix of every error about this record."""
        return printable(f"{self.file}:{self.line} (problem_id {self.problem_id})")


class Movable:
    """A dataclass of tensors; `to` and `pin_memory` are what Lightning and the data loader call."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Copy with its own tensors, and those of its vision input, on `device`; records stay where they are."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = vars(self).copy()
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = function(value)
            elif isinstance(value, Movable):
                values[name] = value._mapped(function)
        return type(self)(**values)


@dataclass(kw_only=True)
class VisionInput(Movable):
    """The vision tower's input for a whole batch: images and videos concatenated in order of appearance."""

    patches: Tensor
    """uint8 [N, D], raw pixel values 0..255; normalized on the device by the policy (a quarter of float's size)."""
    grid_thw: Tensor
    """int64 [n, 3]: temporal, vertical and horizontal patches of each item (before spatial merging)."""
    is_video: Tensor
    """bool [n]."""
    seconds_per_patch: Tensor
    """float32 [n]: seconds of video that one temporal patch covers; 0 for an image."""


@dataclass(kw_only=True)
class EncodedPrompt:
    """One prompt as token ids, with one media token per merged patch."""

    record: VideoRecord
    input_ids: Tensor
    """int64 [P]."""
    vision: VisionInput | None
    """None for a text-only record."""
    frames: Tensor | None
    """The clip's frames, uint8 [F, 3, H, W], for rewards and pictures; None for a text-only record."""
    replaces: tuple[BadRecord, ...] = ()
    """Records that were tried before this one."""


@dataclass(kw_only=True)
class PromptBatch(Movable):
    """B prompts, left-padded to the longest."""

    prompts: list[EncodedPrompt]
    bad_records: list[BadRecord] = field(default_factory=list)
    """Records that were to be in this batch."""
    input_ids: Tensor
    """int64 [B, P]."""
    attention_mask: Tensor
    """int64 [B, P]; 0 on padding."""
    vision: VisionInput | None
    """None when no record of the batch has media."""
    position_ids: Tensor | None = None
    """int64 [3, B, P]: temporal, vertical and horizontal rotary positions; filled by the policy."""
    next_position: Tensor | None = None
    """int64 [B]: position of the first completion token, the same in all three rows; filled by the policy."""
    vision_features: Tensor | None = None
    """[M, H]: features of all media, M merged patches; filled where a frozen vision tower computes them once."""

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """The prompts at `rows`, in that order, padded to the longest of them; what is known of them comes along."""
        rows = list(rows)
        if rows == list(range(len(self))):
            return self
        prompts = [self.prompts[row] for row in rows]
        length = max(len(prompt.input_ids) for prompt in prompts)
        items = [0 if prompt.vision is None else len(prompt.vision.grid_thw) for prompt in self.prompts]
        patches = [0 if prompt.vision is None else len(prompt.vision.patches) for prompt in self.prompts]
        vision, features = self.vision, self.vision_features
        if features is not None and vision is not None:
            merged = len(vision.patches) // len(features)  # patches per feature
            features = _chosen(features, [count // merged for count in patches], rows)
        if vision is not None:
            values = {item.name: getattr(vision, item.name) for item in fields(vision)}
            sizes = {name: patches if name == "patches" else items for name in values}
            vision = VisionInput(**{name: _chosen(value, sizes[name], rows) for name, value in values.items()})
        return PromptBatch(
            prompts=prompts,
            input_ids=self.input_ids[rows, -length:],
            attention_mask=self.attention_mask[rows, -length:],
            vision=vision if any(items[row] for row in rows) else None,
            position_ids=None if self.position_ids is None else self.position_ids[:, rows, -length:],
            next_position=None if self.next_position is None else self.next_position[rows],
            vision_features=features,
        )


@dataclass(kw_only=True)
class SFTBatch(Movable):
    """B prompts with their targets, right-padded: causal attention alone then hides the padding."""

    records: list[VideoRecord]
    bad_records: list[BadRecord] = field(default_factory=list)
    """Records that were to be in this batch."""
    input_ids: Tensor
    """int64 [B, L]."""
    attention_mask: Tensor
    """int64 [B, L]; 0 on padding."""
    labels: Tensor
    """int64 [B, L]: the token itself on assistant tokens (end-of-sequence included), -100 elsewhere."""
    vision: VisionInput | None
    """None when no record of the batch has media."""
    position_ids: Tensor | None = None
    """int64 [3, B, L]; filled by the policy."""

    def __len__(self) -> int:
        return len(self.records)


def _chosen(tensor: Tensor, sizes: Sequence[int], rows: Sequence[int]) -> Tensor:
    """The parts of a tensor that is cut into `sizes`, at `rows`, in that order."""
    parts = tensor.split(sizes)
    return torch.cat([parts[row] for row in rows])
