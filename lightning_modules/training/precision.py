"""Half-precision weights (bf16-true) of a policy, and nothing else in half precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import nn
from torch.optim import Optimizer


class HalfWeights(HalfPrecision):
    """Lightning's bf16-true for a policy that is loaded with its weights in `dtype`.

    Lightning's own plugin casts every tensor it can reach and makes half precision the default of new ones. Rotary
    frequencies would be rounded (positions of long videos then collide), as would seconds per patch, rewards and
    advantages.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._desired_input_dtype

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def tensor_init_context(self) -> AbstractContextManager:
        return nullcontext()

    def forward_context(self) -> AbstractContextManager:
        return nullcontext()


def rounding_note(optimizer: Optimizer) -> str | None:
    """What half-precision weights make of the optimizer's steps; None where no half-precision weight trains."""
    half = (torch.bfloat16, torch.float16)
    groups = [group for group in optimizer.param_groups if any(weight.dtype in half for weight in group["params"])]
    if not groups:
        return None
    dtype = next(weight.dtype for weight in groups[0]["params"] if weight.dtype in half)
    rate = groups[0].get("initial_lr", groups[0]["lr"])
    # Adding less than half the spacing changes nothing; between two powers of 2 that is eps / 2 of the lower one.
    size = 4 * rate / torch.finfo(dtype).eps
    return (
        f"Weights that train are {dtype}, so a step of the learning rate ({rate:g}) is rounded away for every weight "
        f"beyond {size:.1g} in size. trainer.precision: bf16-mixed with model.dtype: float32 keeps such steps."
    )
