"""A policy and prompts that have sizes and no numbers, of the classes and functions that make the real ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from datamodules.types import EncodedPrompt, VideoRecord, VisionInput
from lightning_modules.memory.configs import RankConfig
from lightning_modules.memory.memory_meter import MemoryMeter
from lightning_modules.policy.adapters import adapter_parameters
from lightning_modules.policy.loading import prepared_policy
from lightning_modules.policy.policy import Policy
from lightning_modules.policy_module import PolicyModule
from rewards.types import ProblemType

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per weight: 4 bits, an 8-bit scale for 64 of them, a float32 one for 256 scales."""
TEXT_TOKEN = 0
"""Any token that stands for no media."""


def fake_policy(
    module: PolicyModule, config: PretrainedConfig, rank: RankConfig, meter: MemoryMeter
) -> tuple[Policy, float]:
    """The policy that `module` would load, and the bytes of its weights before sharding.

    The meter does not count the policy's parameters: sharded and quantized ones are here what a layer sees of them, in
    the type of the computation. The copy that a quantized layer makes for that is counted nowhere.
    """
    from transformers import AutoModelForImageTextToText, GenerationConfig

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=rank.weight_dtype)
        model.generation_config = GenerationConfig(eos_token_id=TEXT_TOKEN)
        model.set_attn_implementation({"vision_config": "eager" if module.attn_implementation == "eager" else "sdpa"})
        policy = prepared_policy(
            model,
            _processor(config),
            gradient_checkpointing=module.gradient_checkpointing,
            logprob_chunk_size=module.logprob_chunk_size,
            freeze=module.freeze_parts,
            lora=module.lora,
        )
    quantized = _quantized(policy) if module.quantization else set()
    stored = sum(p.numel() * (NF4_BYTES if p in quantized else p.element_size()) for p in policy.parameters())
    cast, made = set(policy.parameters()) if rank.sharded else quantized, {}
    for owner in policy.modules():
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in made:  # tied ones stay one
                    fake = meter.fake(tensor.shape, rank.compute_dtype if tensor in cast else tensor.dtype, None)
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
                tensors[name] = None if tensor is None else made[tensor]
    return policy, stored


def fake_prompt(policy: Policy, meter: MemoryMeter, grid: tuple[int, int, int], text_tokens: int) -> EncodedPrompt:
    """A prompt of a video of so many temporal, vertical and horizontal patches, with so many other tokens."""
    patches = policy.family.geometry
    count = grid[0] * grid[1] * grid[2]
    media = torch.full((count // patches.merge_size**2,), policy.model.config.video_token_id)
    vision = VisionInput(
        patches=meter.fake((count, 3 * patches.temporal_patch_size * patches.patch_size**2), torch.uint8, "other"),
        grid_thw=torch.tensor([grid]),
        is_video=torch.tensor([True]),
        seconds_per_patch=torch.tensor([1.0]),
    )
    record = VideoRecord(
        problem_id="memory",
        problem="",
        data_type="video",
        problem_type=ProblemType.FREE_FORM,
        solution="",
        file=Path("memory"),
        line=1,
    )
    ids = torch.cat([media, torch.full((text_tokens,), TEXT_TOKEN)])
    return EncodedPrompt(record=record, input_ids=ids, vision=vision, frames=None)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors that share nothing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _processor(config: PretrainedConfig) -> Any:
    """As much of a processor as training uses."""
    tokenizer = SimpleNamespace(
        pad_token_id=TEXT_TOKEN,
        get_vocab=lambda: {"<|video_pad|>": config.video_token_id},
        batch_decode=lambda rows, **_: [""] * len(rows),
    )
    statistics = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return SimpleNamespace(tokenizer=tokenizer, image_processor=statistics)


def _quantized(policy: Policy) -> set[Tensor]:
    """Weights of the language model's linear layers, adapters aside."""
    adapters = {parameter for _, parameter in adapter_parameters(policy.model)}
    decoder = policy.family.language_model(policy.model)
    return {module.weight for module in decoder.modules() if isinstance(module, nn.Linear)} - adapters
