"""Qwen2.5-VL with random weights in several sizes, and prompts of a chosen length, which is all that time and
memory depend on.

Nothing is downloaded and no tokenizer is trained; token ids are random.

Shapes: P prompt tokens, C completion tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.types import EncodedPrompt, VideoRecord, VisionInput
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.qwen_vl import QwenVLFamily
from lightning_modules.policy.shared_prefix import use_shared_prefix_attention
from rewards.types import ProblemType
from tests.performance.prefix_grouper_attention import PREFIX_GROUPER_ATTENTION, prefix_grouper_attention

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

SPECIAL_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|pad|>")
SPECIAL_IDS = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
VIDEO_TOKEN, PAD_TOKEN = SPECIAL_IDS["<|video_pad|>"], SPECIAL_IDS["<|pad|>"]
FRAME_PIXELS = 14
MERGE = 2


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What decides the cost of a Qwen2.5-VL."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    mrope_section: tuple[int, int, int]
    """Rotary frequencies for time, height and width; they add up to half the head size."""
    tied: bool
    """The output projection is the embedding."""
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    vision_heads: int
    full_attention_blocks: tuple[int, ...]


_TOWER = {
    "vision_depth": 32,
    "vision_hidden": 1280,
    "vision_intermediate": 3420,
    "vision_heads": 16,
    "full_attention_blocks": (7, 15, 23, 31),
}
SIZES = {
    "demo": ModelSize(
        hidden=128,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate=256,
        vocabulary=384,
        mrope_section=(4, 6, 6),
        tied=True,
        vision_depth=1,
        vision_hidden=64,
        vision_intermediate=128,
        vision_heads=2,
        full_attention_blocks=(0,),
    ),
    # The arithmetic is divided about as in 3B and 7B: the output projection is 11 % of the decoder, the tower
    # costs about half of it per video token, feed-forward layers are six times attention's projections.
    "small": ModelSize(
        hidden=256,
        layers=2,
        heads=8,
        kv_heads=2,
        intermediate=1344,
        vocabulary=1024,
        mrope_section=(4, 6, 6),
        tied=False,
        vision_depth=4,
        vision_hidden=64,
        vision_intermediate=172,
        vision_heads=2,
        full_attention_blocks=(3,),
    ),
    "3b": ModelSize(
        hidden=2048,
        layers=36,
        heads=16,
        kv_heads=2,
        intermediate=11008,
        vocabulary=151936,
        mrope_section=(16, 24, 24),
        tied=True,
        **_TOWER,
    ),
    "7b": ModelSize(
        hidden=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        intermediate=18944,
        vocabulary=152064,
        mrope_section=(16, 24, 24),
        tied=False,
        **_TOWER,
    ),
}
"""3b and 7b are Qwen2.5-VL's published sizes, demo is the demo's."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Views of one set of weights."""

    size: ModelSize
    stock: Qwen2_5_VLForConditionalGeneration
    """As transformers makes it, sdpa attention."""
    fast_vision: Qwen2_5_VLForConditionalGeneration
    """Stock except for the project's vision tower: separates the tower's savings from those of sharing the prompt."""
    prefix_grouper: Qwen2_5_VLForConditionalGeneration
    """As `fast_vision`, with the attention that PrefixGrouper needs."""
    policy: Policy

    @property
    def device(self) -> torch.device:
        return self.stock.device


def build_models(size: ModelSize, device: str, dtype: torch.dtype, *, gradient_checkpointing: bool = False) -> Models:
    """Random weights of `size`, shared by stock model and policy."""
    from transformers import AttentionInterface, GenerationConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(_config(size))
    finally:
        torch.set_default_dtype(default)
    model.train()
    # A vision token ends a completion. Vision tokens are never sampled, so every completion takes all its tokens.
    model.generation_config = GenerationConfig(eos_token_id=VIDEO_TOKEN, pad_token_id=PAD_TOKEN)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    stock, fast_vision, prefix_grouper = (
        copy.deepcopy(model, {id(p): p for p in model.parameters()}) for _ in range(3)
    )
    tokenizer = SimpleNamespace(
        get_vocab=lambda: SPECIAL_IDS,
        batch_decode=lambda rows, **options: ["" for _ in rows],
        pad_token_id=PAD_TOKEN,
    )
    processor = SimpleNamespace(
        tokenizer=tokenizer, image_processor=SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    )
    QwenVLFamily(fast_vision, processor)
    QwenVLFamily(prefix_grouper, processor)
    AttentionInterface.register(PREFIX_GROUPER_ATTENTION, prefix_grouper_attention)
    prefix_grouper.set_attn_implementation({"text_config": PREFIX_GROUPER_ATTENTION})
    family = QwenVLFamily(model, processor)
    use_shared_prefix_attention(model)
    policy = Policy(model, processor, family)
    return Models(size=size, stock=stock, fast_vision=fast_vision, prefix_grouper=prefix_grouper, policy=policy)


def _config(size: ModelSize) -> Qwen2_5_VLConfig:
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": list(size.mrope_section),
            },
            "tie_word_embeddings": size.tied,
            "bos_token_id": PAD_TOKEN,
            "eos_token_id": VIDEO_TOKEN,
            "pad_token_id": PAD_TOKEN,
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_intermediate,
            "num_heads": size.vision_heads,
            "out_hidden_size": size.hidden,
            "patch_size": FRAME_PIXELS,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(size.full_attention_blocks),
        },
        image_token_id=SPECIAL_IDS["<|image_pad|>"],
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=SPECIAL_IDS["<|vision_start|>"],
        vision_end_token_id=SPECIAL_IDS["<|vision_end|>"],
        tie_word_embeddings=size.tied,
    )


def video_grid(prompt_tokens: int) -> tuple[int, int, int]:
    """Temporal patches, rows and columns of merged patches that fill at most 90 % of a prompt.

    Frames have about the published training size (128 * 28 * 28 pixels); longer prompts hold more of them.
    """
    budget = int(0.9 * prompt_tokens)
    frames = max(2, prompt_tokens // 128)
    rows = int((budget / frames) ** 0.5)
    return frames, rows, budget // frames // rows


def video_prompt(size: ModelSize, prompt_tokens: int, *, seed: int = 0) -> EncodedPrompt:
    """A prompt of exactly `prompt_tokens` random tokens around one video of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    frames, rows, columns = video_grid(prompt_tokens)
    features = frames * rows * columns
    text = torch.randint(len(SPECIAL_TOKENS), size.vocabulary, (prompt_tokens - features - 2,), generator=generator)
    start, end = (torch.tensor([SPECIAL_IDS[token]]) for token in ("<|vision_start|>", "<|vision_end|>"))
    before, after = text[:4], text[4:]
    patches = torch.randint(0, 256, (features * MERGE**2, 3 * 2 * FRAME_PIXELS**2), generator=generator)
    return EncodedPrompt(
        record=VideoRecord(
            problem_id="random",
            problem="",
            data_type="video",
            problem_type=ProblemType.FREE_FORM,
            solution="",
            path="random.mp4",
            file=Path("random.jsonl"),
            line=1,
        ),
        input_ids=torch.cat([before, start, torch.full((features,), VIDEO_TOKEN), end, after]),
        vision=VisionInput(
            patches=patches.to(torch.uint8),
            grid_thw=torch.tensor([[frames, rows * MERGE, columns * MERGE]]),
            is_video=torch.tensor([True]),
            seconds_per_patch=torch.tensor([1.0]),
        ),
        frames=None,
    )


def random_completions(size: ModelSize, lengths: Sequence[int], *, seed: int = 1) -> list[Tensor]:
    """One int64 [C] of random tokens per length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(len(SPECIAL_TOKENS), size.vocabulary, (length,), generator=generator) for length in lengths]
