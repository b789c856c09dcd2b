"""From a run's configuration to the sizes that a memory estimate takes.

No weights are read or made: parameters are counted in the model's own classes on the meta device.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from datamodules.video.frame_sampling import MIN_BUDGET_SLACK, FrameConfig
from datamodules.video_datamodule import VideoDataModule
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.memory.sizes import Architecture, PartSize, Setup, Workload
from lightning_modules.policy.adapters import add_adapters, is_adapter
from lightning_modules.policy.loading import FAMILIES
from lightning_modules.policy_module import PolicyModule
from rewards.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per weight: 4 bits, an 8-bit scale for 64 of them, a float32 one for 256 scales."""
STATE_BYTES_8BIT = 2 + 2 * 4 / 256
"""Of 8-bit AdamW per number: two moments, a float32 scale of each for 256 numbers."""
_LAYER = re.compile(r"(layers|blocks)\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class _TextSize:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 152064
    tied: bool = False
    vision_intermediate: int = 3420


KNOWN_SIZES: dict[str, _TextSize] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _TextSize(
        hidden=2048, layers=36, heads=16, kv_heads=2, intermediate=11008, vocabulary=151936, tied=True
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": _TextSize(hidden=3584, layers=28, heads=28, kv_heads=4, intermediate=18944),
    "Qwen/Qwen2.5-VL-72B-Instruct": _TextSize(
        hidden=8192, layers=80, heads=64, kv_heads=8, intermediate=29568, vision_intermediate=3456
    ),
}
"""Published sizes, so that these names need no network."""


def model_config(model_name_or_path: str) -> PretrainedConfig:
    """The architecture of a known name, a folder or a checkpoint that was downloaded before.

    Raises:
        UserError: none of these, or a model of another family.
    """
    from transformers import AutoConfig

    if model_name_or_path in KNOWN_SIZES and not Path(model_name_or_path).is_dir():
        return _published(KNOWN_SIZES[model_name_or_path])
    try:
        config = AutoConfig.from_pretrained(model_name_or_path, local_files_only=True)
    except OSError as error:
        raise UserError(
            f"model_name_or_path is {model_name_or_path!r}: there is no such folder with a config.json here and no "
            f"such download in the cache. Give a model's folder, or one of {', '.join(KNOWN_SIZES)}, whose sizes are "
            "known without either."
        ) from error
    if config.model_type not in FAMILIES:
        raise UserError(
            f"model_name_or_path {model_name_or_path!r} holds a {config.model_type!r} model; supported are "
            f"{', '.join(map(repr, FAMILIES))}."
        )
    return config


def _published(size: _TextSize) -> PretrainedConfig:
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "intermediate_size": size.intermediate,
            "vocab_size": size.vocabulary,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": size.tied,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": size.vision_intermediate,
            "num_heads": 16,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        tie_word_embeddings=size.tied,
    )


def architecture(config: PretrainedConfig) -> Architecture:
    """The sizes of a Qwen2.5-VL or Qwen2-VL configuration that decide its memory."""
    text, vision = config.get_text_config(), config.vision_config
    older = config.model_type == "qwen2_vl"  # names its sizes otherwise and attends over whole frames everywhere
    hidden = vision.embed_dim if older else vision.hidden_size
    return Architecture(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vocabulary=text.vocab_size,
        tied=config.tie_word_embeddings,
        vision_layers=vision.depth,
        vision_hidden=hidden,
        vision_intermediate=int(hidden * vision.mlp_ratio) if older else vision.intermediate_size,
        vision_heads=vision.num_heads,
        vision_full_layers=vision.depth if older else len(vision.fullatt_block_indexes),
        merge=vision.spatial_merge_size,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
    )


def count_parts(module: PolicyModule, config: PretrainedConfig, setup: Setup) -> list[PartSize]:
    """Parameters of every part of the model that `module` would load, adapters included."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        if module.lora is not None:
            add_adapters(model, model.model.language_model, module.lora)
    linear_names = {
        f"{place}.{name}"
        for place, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        for name, _ in layer.named_parameters(recurse=False)
    }
    total, linear, layers = Counter(), Counter(), Counter()
    for name, parameter in model.named_parameters():
        part, size = _part_of(name), parameter.numel()
        total[part] += size
        linear[part] += size if name in linear_names and part != "embeddings" else 0
        if match := _LAYER.search(name):
            layers[part, match.group()] += size
    return [
        PartSize(
            name=part,
            parameters=total[part],
            trainable=total[part] if _trains(module, part) else 0,
            linear=linear[part],
            bytes_each=_bytes_each(module, part, linear[part] / total[part], setup),
            largest_layer=max((size for (owner, _), size in layers.items() if owner == part), default=0),
        )
        for part in total
    ]


def _part_of(name: str) -> str:
    if is_adapter(name):
        return "adapters"
    if ".visual." in name:
        return "merger" if ".merger." in name else "vision_tower"
    return "embeddings" if "embed_tokens" in name or "lm_head" in name else "language_model"


def _trains(module: PolicyModule, part: str) -> bool:
    return part == "adapters" if module.lora is not None else part not in module.freeze_parts


def _bytes_each(module: PolicyModule, part: str, linear_share: float, setup: Setup) -> float:
    if part == "adapters":
        return setup.trained_bytes
    if module.quantization is None or part != "language_model":
        return setup.weight_bytes
    return linear_share * NF4_BYTES + (1 - linear_share) * setup.weight_bytes


def setup_of(module: PolicyModule, trainer: Mapping[str, Any], ranks: int | None) -> Setup:
    """How the run computes, from its module and the trainer's configuration.

    Args:
        module: SFT, GRPO or evaluation module.
        trainer: the configuration under `trainer`.
        ranks: processes of the run; None takes trainer.devices x trainer.num_nodes.

    Raises:
        UserError: `ranks` is not positive.
    """
    weight, compute = _precision(str(trainer.get("precision") or "32-true"), module.dtype_name)
    trained = weight if module.lora is None else max(weight, 4)  # adapters are float32 on every base
    strategy = trainer.get("strategy") or "auto"
    name = strategy if isinstance(strategy, str) else strategy["class_path"]
    options = {} if isinstance(strategy, str) else strategy.get("init_args") or {}
    ranks = _ranks(trainer) if ranks is None else ranks
    if ranks < 1:
        raise UserError(f"--ranks is {ranks}; it must be >= 1.")
    eight_bit = module.optimizer_config.name != "adamw"
    return Setup(
        weight_bytes=weight,
        trained_bytes=trained,
        compute_bytes=compute,
        checkpointing=module.gradient_checkpointing,
        chunk_rows=module.logprob_chunk_size,
        vision_frozen=not (_trains(module, "vision_tower") or _trains(module, "merger")),
        reference=isinstance(module, GRPOModule) and module.loss_config.beta > 0 and module.lora is None,
        optimizer_bytes=STATE_BYTES_8BIT if eight_bit else 2 * trained,
        fused_optimizer=eight_bit,
        ranks=ranks,
        sharded=bool(re.search("fsdp|modelparallel|model_parallel", name, re.IGNORECASE)),
        cuda=trainer.get("accelerator") != "cpu",
        offloaded=bool(options.get("cpu_offload", False)),
        reduce_every_backward=bool(options.get("reduce_every_backward", False)),
    )


def _precision(precision: str, dtype: str) -> tuple[int, int]:
    """Bytes of a weight and of a computed number."""
    weight = getattr(torch, dtype).itemsize
    if precision.endswith("-true") and not precision.startswith("32"):
        weight = {"16": 2, "bf16": 2, "64": 8}[precision.removesuffix("-true")]
    return weight, 2 if precision in ("bf16-mixed", "16-mixed", "bf16", "16") else weight


def devices_are_open(trainer: Mapping[str, Any]) -> bool:
    """Whether the number of processes depends on the machine that runs."""
    return str(trainer.get("devices") or 1) in ("auto", "-1")


def _ranks(trainer: Mapping[str, Any]) -> int:
    devices = trainer.get("devices") or 1
    if isinstance(devices, list):
        devices = len(devices)
    return (int(devices) if str(devices).isdigit() else 1) * int(trainer.get("num_nodes") or 1)


def workload_of(
    module: PolicyModule,
    data: VideoDataModule,
    profile: FrameConfig,
    accumulate: int,
    *,
    text_tokens: int,
    completion_tokens: int | None,
) -> Workload:
    """One rank's share of a training step on videos of `profile`, or on its images where those are larger.

    Args:
        module: SFT or GRPO module.
        data: the run's data.
        profile: frames and pixels; frames are taken to fill their budget.
        accumulate: trainer.accumulate_grad_batches, of fine-tuning.
        text_tokens: of a prompt, beside its media.
        completion_tokens: of every completion, or fine-tuning target; None takes the limit of sampling.
    """
    grpo = isinstance(module, GRPOModule)
    area = profile.grid**2
    frame_tokens = max(profile.max_pixels, int(profile.min_pixels * MIN_BUDGET_SLACK)) // area
    media = max(profile.num_frames // profile.temporal_patch_size * frame_tokens, profile.image_max_pixels // area)
    sampling = module.sampling if grpo else module.evaluation
    micro = min((module.micro_batch_groups if grpo else None) or data.batch_size, data.batch_size)
    return Workload(
        prompts=data.batch_size,
        micro_prompts=micro,
        group_size=module.group_size if grpo else 1,
        prompt_tokens=media + text_tokens,
        completion_tokens=completion_tokens or sampling.max_new_tokens,
        patches=media * profile.merge_size**2,
        sampling=grpo,
        micro_batches=-(-data.batch_size // micro) if grpo else accumulate,
    )
