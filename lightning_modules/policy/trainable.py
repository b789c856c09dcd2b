"""What trains and what is frozen, part by part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from torch import nn

from lightning_modules.policy.adapters import adapter_parameters
from rewards.errors import UserError

if TYPE_CHECKING:
    from lightning_modules.policy.policy import Policy

Part = Literal["vision_tower", "merger", "embeddings", "language_model"]
"""Parts that can be frozen; embeddings are those of the input and of the output."""


def freeze_parts(parts: Mapping[str, Sequence[nn.Parameter]], frozen: Sequence[Part], *, adapters: bool) -> None:
    """Take the given parts out of training.

    Args:
        parts: parameters of every part of the model.
        frozen: names of those that shall not train.
        adapters: whether adapters will train in any case.

    Raises:
        UserError: a name that is none, or nothing is left to train.
    """
    unknown = [name for name in frozen if name not in parts]
    if unknown:
        raise UserError(f"model.freeze names {', '.join(unknown)}; the parts are {', '.join(get_args(Part))}.")
    if set(frozen) == set(parts) and not adapters:
        raise UserError(
            f"model.freeze names every part ({', '.join(parts)}), so nothing trains; take one out, or set model.lora "
            "to train adapters, which freezes everything else by itself."
        )
    for name in frozen:
        for parameter in parts[name]:
            parameter.requires_grad_(False)


def trainable_table(policy: Policy) -> str:
    """A printable table of trainable and of all parameters of each part, the number of weights before quantization."""
    adapters = [parameter for _, parameter in adapter_parameters(policy.model)]
    known = {id(parameter) for parameter in adapters}
    rows: dict[str, Sequence[nn.Parameter]] = {
        name: [parameter for parameter in parameters if id(parameter) not in known]
        for name, parameters in policy.family.parts(policy.model).items()
    }
    if adapters:
        rows["adapters"] = adapters
    rows["all"] = list(policy.model.parameters())
    lines = [f"{'part':<16}{'trainable':>16}{'total':>16}"]
    for name, parameters in rows.items():
        trainable = sum(_size(parameter) for parameter in parameters if parameter.requires_grad)
        lines.append(f"{name:<16}{trainable:>16,}{sum(map(_size, parameters)):>16,}")
    return "\n".join(lines)


def _size(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # two 4-bit weights share a byte
    return parameter.numel() if state is None else math.prod(state.shape)
