"""Half-precision weights (bf16-true) of a policy, and nothing else in half precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, Precision
from torch import nn
from torch.optim import Optimizer

from rewards.errors import UserError

if TYPE_CHECKING:
    from lightning_modules.policy.loading import Dtype

HALF_PRECISIONS: dict[str, Dtype] = {"bf16-true": "bfloat16", "16-true": "float16"}
"""Values of `Trainer(precision=...)` that mean weights in half precision, and the type of those weights."""


class HalfWeights(HalfPrecision):
    """Lightning's bf16-true (or 16-true) for a policy that is loaded with its weights in that type.

    Lightning's own plugin casts every tensor it can reach and makes half precision the default of new ones. Rotary
    frequencies would be rounded (positions of long videos then collide), as would seconds per patch, rewards and
    advantages. On the command line `trainer.precision: bf16-true` means this plugin; in Python it is
    `Trainer(plugins=[HalfWeights("bf16-true")])`.
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def tensor_init_context(self) -> AbstractContextManager:
        return nullcontext()

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        yield


def trainer_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a Trainer, with `HalfWeights` as a plugin in the place of a precision of half-precision weights."""
    precision = options.get("precision")
    if precision not in HALF_PRECISIONS:
        return dict(options)
    plugins = options.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    return {**options, "precision": None, "plugins": [*plugins, HalfWeights(precision)]}


def weights_dtype(plugin: Precision | None, dtype: Dtype) -> Dtype:
    """The type in which a policy is loaded: that of a trainer's half-precision plugin, or else `dtype`.

    Raises:
        UserError: the plugin would round more than the weights.
    """
    if not isinstance(plugin, HalfPrecision):
        return dtype
    if not isinstance(plugin, HalfWeights):
        given = plugin.precision
        raise UserError(
            f"The trainer's precision is {given!r} by Lightning's HalfPrecision, which would also round rotary "
            f"frequencies, rewards and advantages. Leave precision out and give Trainer(plugins=[HalfWeights({given!r})"
            "]), from lightning_modules.training.precision; `python cli.py` does so by itself."
        )
    return HALF_PRECISIONS[plugin.precision]


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
