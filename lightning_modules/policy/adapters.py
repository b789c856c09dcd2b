"""Low-rank adapters (LoRA, arXiv 2106.09685) and quantized bases (QLoRA, arXiv 2305.14314) of a policy.

Adapters are injected with peft, which leaves the transformers class, the way in and the names of everything else as
they are. A layer with the weight W and adapters A, B computes x W^T + scaling * x A^T B^T.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rewards.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization = Literal["nf4"]

ADAPTER_NAME = "default"
BASE_PREFIX = re.compile(r"\.base_layer\.")
_ADAPTER_KEY = re.compile(rf"\.lora_[AB]\.{ADAPTER_NAME}\.weight$")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which layers of the language model get adapters, and of what size; everything else is frozen."""

    r: int = 16
    """Rank of an adapter."""
    alpha: int = 32
    """The adapter's output is multiplied by alpha / r."""
    dropout: float = 0.0
    """Of an adapter's input in training. Sampling is without it, so in GRPO it parts the sampler from the trainer."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Last names of the layers that get one: by default all linear layers of the language model."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"lora.r is {self.r}; a rank is >= 1.")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha is {self.alpha}; it must be > 0 (alpha / r scales the adapters).")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}; it must be in [0, 1).")
        if not self.target_modules:
            raise UserError("lora.target_modules is empty; name at least one layer, for instance [q_proj, v_proj].")


def add_adapters(model: PreTrainedModel, decoder: nn.Module, config: AdapterConfig) -> None:
    """Freeze the model and give the named linear layers of its decoder adapters that change nothing yet (B = 0).

    Adapters, and with them their gradients and optimizer states, are float32 (float64 on a float64 model).

    Raises:
        UserError: the decoder has no linear layer of a given name.
    """
    from peft import inject_adapter_in_model

    present = {name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in config.target_modules if name not in present]
    if unknown:
        raise UserError(
            f"lora.target_modules names {', '.join(unknown)}; the linear layers of this language model are "
            f"{', '.join(sorted(present))}."
        )
    model.requires_grad_(False)
    inject_adapter_in_model(_peft_config(model, decoder, config), model, adapter_name=ADAPTER_NAME)
    for _, parameter in adapter_parameters(model):
        # peft gives them the type of their layer, and bfloat16 rounds steps of 1e-5 away.
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.requires_grad_(True)


def _peft_config(model: PreTrainedModel, decoder: nn.Module, config: AdapterConfig) -> LoraConfig:
    from peft import LoraConfig

    place = next(name for name, module in model.named_modules() if module is decoder)
    # A pattern, since the vision tower has layers of the same last names.
    pattern = rf"{re.escape(place)}\..*\.({'|'.join(map(re.escape, config.target_modules))})"
    return LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=pattern,
        base_model_name_or_path=model.config.name_or_path,
    )


def adapter_config(model: nn.Module) -> LoraConfig | None:
    """peft's configuration of the adapters in a model, None where there are none."""
    return getattr(model, "peft_config", {}).get(ADAPTER_NAME)


def adapter_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Adapters by name: A [R, I] and B [O, R] of every layer."""
    return ((name, parameter) for name, parameter in model.named_parameters() if is_adapter(name))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return _ADAPTER_KEY.search(name) is not None


@contextmanager
def disabled_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as if it had no adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.disable_adapters for layer in layers]
    for layer in layers:
        # Not enable_adapters(False), which also freezes the adapters and so changes what the optimizer trains.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def merged(weights: Mapping[str, Tensor], scaling: float, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Weights of the model without adapters: W + scaling * B A, summed in float32, under the names W had before.

    Args:
        weights: state dict of the model with its adapters, W [O, I] of a layer under `<layer>.base_layer.weight`.
        scaling: alpha / r.
        dtype: of the sums; None rounds each to what W was.
    """
    result = {BASE_PREFIX.sub(".", name): value for name, value in weights.items() if not is_adapter(name)}
    for name in [name for name in weights if name.endswith(f".lora_A.{ADAPTER_NAME}.weight")]:
        layer = name.removesuffix(f".lora_A.{ADAPTER_NAME}.weight")
        base, down, up = result[f"{layer}.weight"], weights[name], weights[name.replace(".lora_A.", ".lora_B.")]
        wide = torch.promote_types(base.dtype, torch.float32)
        delta = scaling * (up.to(wide) @ down.to(wide))
        result[f"{layer}.weight"] = (base.to(wide) + delta.to(base.device)).to(dtype or base.dtype)
    return result


def drop_base_from_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Leave the frozen weights under the adapters out of a Lightning checkpoint: they can be loaded again.

    Shards stay whole, since a distributed checkpoint is read by the names that the model has.
    """
    weights = checkpoint["state_dict"]
    if any(isinstance(value, DTensor) for value in weights.values()):
        return
    for name in [name for name in weights if not is_adapter(name)]:
        del weights[name]


def check_checkpoint(checkpoint: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse to resume from a checkpoint whose adapters are not the model's.

    Raises:
        UserError: its adapters differ from the model's in number, place or rank.
    """
    weights = checkpoint.get("state_dict")
    if not weights:  # shards are read, and checked, by the strategy; a whole checkpoint is on the first rank alone
        return
    found = {
        re.sub(r"^.*?policy\.model\.", "", name): value.shape for name, value in weights.items() if is_adapter(name)
    }
    needed = {name: parameter.shape for name, parameter in adapter_parameters(model)}
    if found != needed:
        differing = sorted(name for name in found.keys() | needed.keys() if found.get(name) != needed.get(name))
        raise UserError(
            f"The checkpoint's adapters are not those of model.lora: {len(found)} there, {len(needed)} here, and "
            f"{len(differing)} differ in name or shape, among them {differing[0]}. Resume with the "
            "r and target_modules of the run that wrote it."
        )


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantization for the language model; the vision tower and the head stay whole."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["model.visual", "lm_head"],  # matched from the start of a name: "visual" alone is none
    )


def keep_differentiable(model: nn.Module) -> None:
    """Keep quantized layers in the one arithmetic that has a backward.

    On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights for inference at the first sampling, for good: the
    layers then pass no gradients, and sampler and trainer would differ.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
