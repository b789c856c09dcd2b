"""Build a policy from a Hugging Face folder or name."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch

from lightning_modules.policy.adapters import AdapterConfig, Quantization, add_adapters, keep_differentiable, nf4_config
from lightning_modules.policy.family import ModelFamily
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.qwen_vl import QwenVLFamily
from lightning_modules.policy.shared_prefix import use_shared_prefix_attention
from lightning_modules.policy.trainable import Part, freeze_parts
from rewards.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

logger = logging.getLogger(__name__)

AttentionImplementation = Literal["auto", "sdpa", "flash_attention_2", "eager"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]

FAMILIES: dict[str, Callable[[PreTrainedModel, ProcessorMixin], ModelFamily]] = {
    "qwen2_vl": QwenVLFamily,
    "qwen2_5_vl": QwenVLFamily,
}
"""`model_type` of a checkpoint's config -> its adapter."""


def load_policy(
    model_name_or_path: str,
    *,
    dtype: Dtype = "float32",
    attn_implementation: AttentionImplementation = "auto",
    gradient_checkpointing: bool = False,
    logprob_chunk_size: int = 512,
    freeze: Sequence[Part] = (),
    lora: AdapterConfig | None = None,
    quantization: Quantization | None = None,
) -> Policy:
    """Load weights and processor of a Qwen2-VL or Qwen2.5-VL checkpoint.

    Args:
        model_name_or_path: a Hugging Face folder or name.
        dtype: of the weights.
        attn_implementation: of the vision tower; "auto" is flash attention 2 where CUDA and the package exist, else
            sdpa. The language model always uses the shared-prefix attention, which is sdpa.
        gradient_checkpointing: recompute activations of every layer in the backward.
        logprob_chunk_size: rows of logits that exist at a time.
        freeze: parts that do not train. With both the vision tower and the merger frozen, sampling, policy and
            reference share one tower call per step.
        lora: train low-rank adapters of the language model and nothing else.
        quantization: "nf4" keeps the language model's own weights in 4 bits; needs `lora`.

    Raises:
        UserError: the folder does not exist, is incomplete or holds another kind of model; nothing is left to train;
            or there is a quantized base without adapters.
    """
    from transformers import AutoProcessor

    if quantization is not None and lora is None:
        raise UserError(
            f"model.quantization is {quantization!r}, but model.lora is null: weights in 4 bits do not train. Set "
            "model.lora (for instance {r: 16}) or quantization: null."
        )
    supported_model_type(model_name_or_path)
    try:
        processor = AutoProcessor.from_pretrained(model_name_or_path)
        model = load_weights(model_name_or_path, dtype=getattr(torch, dtype), quantization=quantization)
    except OSError as error:
        raise UserError(f"The checkpoint {model_name_or_path!r} is incomplete: {error}") from error
    model.set_attn_implementation({"vision_config": resolve_attention(attn_implementation)})
    return prepared_policy(
        model,
        processor,
        gradient_checkpointing=gradient_checkpointing,
        logprob_chunk_size=logprob_chunk_size,
        freeze=freeze,
        lora=lora,
    )


def prepared_policy(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    gradient_checkpointing: bool = False,
    logprob_chunk_size: int = 512,
    freeze: Sequence[Part] = (),
    lora: AdapterConfig | None = None,
) -> Policy:
    """A transformers model of a supported family as a policy in training mode; the arguments are `load_policy`'s."""
    use_shared_prefix_attention(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()  # from_pretrained leaves evaluation mode behind
    family = FAMILIES[model.config.model_type](model, processor)
    freeze_parts(family.parts(model), freeze, adapters=lora is not None)
    if lora is not None:
        add_adapters(model, family.language_model(model), lora)
    return Policy(model, processor, family, logprob_chunk_size=logprob_chunk_size)


def load_weights(
    model_name_or_path: str, *, dtype: torch.dtype, quantization: Quantization | None = None
) -> PreTrainedModel:
    """The transformers model of a checkpoint, written by transformers 4 or 5.

    Raises:
        UserError: the checkpoint lacks weights, which transformers would make up at random.
        OSError: it lacks files.
    """
    from transformers import AutoModelForImageTextToText

    options = {} if quantization is None else {"quantization_config": nf4_config(dtype)}
    loaded = AutoModelForImageTextToText.from_pretrained(
        model_name_or_path, dtype=dtype, output_loading_info=True, **options
    )
    model, report = cast("tuple[PreTrainedModel, dict[str, list[str]]]", loaded)  # declared as without the report
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"The checkpoint {model_name_or_path!r} lacks {len(missing)} weights of a {type(model).__name__}, among "
            f"them {', '.join(missing[:3])}; they would be random. It holds {len(report['unexpected_keys'])} weights "
            "under other names. Give a complete Qwen2.5-VL or Qwen2-VL checkpoint."
        )
    if quantization is not None:
        keep_differentiable(model)
    return model


def supported_model_type(model_name_or_path: str) -> str:
    """`model_type` of a checkpoint, read from its config alone.

    Raises:
        UserError: no config there, or a model of another family.
    """
    from transformers import AutoConfig

    path = Path(model_name_or_path)
    looks_like_path = path.is_absolute() or model_name_or_path.startswith((".", "~")) or path.is_dir()
    if looks_like_path and not (path / "config.json").is_file():
        raise UserError(
            f"model_name_or_path is {model_name_or_path!r}, but there is no config.json in that folder. Give the "
            "folder of a Qwen2.5-VL checkpoint (config.json, *.safetensors, tokenizer and processor files) or a "
            "Hugging Face name such as Qwen/Qwen2.5-VL-7B-Instruct."
        )
    try:
        model_type = AutoConfig.from_pretrained(model_name_or_path).model_type
    except OSError as error:
        raise UserError(
            f"model_name_or_path is {model_name_or_path!r}, which is neither a folder here nor a name that could be "
            f"downloaded: {error}"
        ) from error
    if model_type not in FAMILIES:
        raise UserError(
            f"model_name_or_path {model_name_or_path!r} holds a {model_type!r} model; supported are "
            f"{', '.join(map(repr, FAMILIES))}. Give a Qwen2-VL or Qwen2.5-VL checkpoint; docs/decisions.md says what "
            "Qwen3-VL would need."
        )
    return model_type


def resolve_attention(requested: AttentionImplementation) -> str:
    """The attention implementation to use; what "auto" chose is logged."""
    if requested != "auto":
        return requested
    has_flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    chosen = "flash_attention_2" if has_flash else "sdpa"
    logger.info("attn_implementation: auto -> %s", chosen)
    return chosen
