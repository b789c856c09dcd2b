"""How many completions share a backward pass: the peak of an update against that number, and the number that fits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.video_datamodule import VideoDataModule
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.memory.configs import model_config, rank_config
from lightning_modules.memory.sizes import GIBIBYTE, USABLE_FRACTION, largest_that_fits, step_size
from lightning_modules.memory.step_memory import StepMemory, StepSize
from lightning_modules.policy_module import PolicyModule


class SlicePeaks:
    """Bytes at the peak of an update by completions per backward pass; every number is measured once."""

    def __init__(self, memory: StepMemory, size: StepSize) -> None:
        assert memory.grpo is not None, "fine-tuning samples no completions"
        groups = min(memory.grpo.micro_batch_groups or size.prompts, size.prompts)
        self.count = groups * memory.grpo.group_size
        """Completions of a micro-batch."""
        self._measure = lambda completions: memory.update(size, in_slices_of=completions).total()
        self._known: dict[int | None, int] = {}

    def of(self, completions: int | None) -> int:
        """Bytes for so many completions per backward pass, for None with all of them and their prompts in one."""
        if completions not in self._known:
            self._known[completions] = self._measure(completions)
        return self._known[completions]

    def fitting(self, limit: float) -> int | None:
        """The largest number whose update takes at most `limit` bytes; where none does, the one that takes least."""
        if self.of(None) <= limit:
            return None
        # Slices may take more than one pass: sharded gradients wait, whole, for the last slice.
        return largest_that_fits(self.of, limit, self.count) or (1 if self.of(1) < self.of(None) else None)

    def table(self) -> dict[int | None, int]:
        """The peaks of 1, 4, 16, ... completions per backward pass, and of all in one."""
        sizes = [4**power for power in range(self.count) if 4**power < self.count]
        return {completions: self.of(completions) for completions in (*sizes, None)}


def settle_slices(module: PolicyModule, data: VideoDataModule, trainer: Mapping[str, Any], ranks: int) -> None:
    """Replace `micro_batch_completions: auto` by the number that fits this machine's GPU or, without one, its memory.

    Args:
        module: as configured; nothing is loaded.
        data: the run's data.
        trainer: the configuration under `trainer`.
        ranks: processes of the run.
    """
    if not isinstance(module, GRPOModule) or module.micro_batch_completions != "auto":
        return
    if torch.cuda.is_available():
        total = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = total * USABLE_FRACTION
    size = step_size(module, data, trainer)
    module.micro_batch_completions = None
    memory = StepMemory(module, model_config(module.model_name_or_path), rank_config(module, trainer, ranks))
    peaks = SlicePeaks(memory, size)
    module.micro_batch_completions = chosen = peaks.fitting(limit)
    del module.policy, module.engine, module.update  # which are without numbers
    module.reference = None
    told = "all completions in one pass" if chosen is None else f"{chosen} completions per backward pass"
    rank_zero_info(
        f"micro_batch_completions: auto takes {told}; an update then needs about "
        f"{peaks.of(chosen) / GIBIBYTE:.1f} GiB of {limit / GIBIBYTE:.1f}."
    )
    if peaks.of(chosen) > limit:
        rank_zero_warn(
            "By the estimate not even one completion per backward pass fits; see `python cli.py check model`."
        )
