"""A Qwen2.5-VL of about half a million parameters, built from nothing with Hugging Face's own classes.

The folder that `write_tiny_model` leaves behind is what a download of the real model would be (weights,
configuration, tokenizer, processor, chat template, generation settings), so the demo and the tests take the
same path as a 7B run. Nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from datamodules.synthetic.dataset import corpus
from datamodules.synthetic.generated_folder import publish_folder
from rewards.errors import UserError

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2Tokenizer

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of their ids in Qwen2.5-VL; here they take ids 0 to 13."""
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
MAX_TOKENS = 4096

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif part['type'] == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Qwen2.5-VL's turns, but a system turn only where the messages have one (Qwen's adds a default)."""


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Sizes of the model. The default learns the demo in about a minute of CPU time and has 0.56M parameters."""

    vocab_size: int = 384
    """Tokens, special ones included; at least 270 (14 special tokens and 256 bytes)."""
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    tie_word_embeddings: bool = True
    rope_theta: float = 1e4
    mrope_section: tuple[int, int, int] = (4, 6, 6)
    """Rotary frequencies for time, height and width; they add up to half the head size."""
    vision_depth: int = 1
    vision_hidden_size: int = 64
    vision_intermediate_size: int = 128
    vision_heads: int = 2
    full_attention_blocks: tuple[int, ...] = (0,)
    """Vision blocks that attend over a whole temporal patch; the others attend within windows."""
    window_size: int = 112
    """Side of an attention window of the vision tower, in pixels."""
    patch_size: int = 14
    initializer_range: float = 0.06
    """Standard deviation of the initial weights; at the usual 0.02 a model this small stays at chance."""

    def __post_init__(self) -> None:
        checks = {
            "vocab_size": (self.vocab_size >= MIN_VOCAB_SIZE, f"at least {MIN_VOCAB_SIZE}"),
            "hidden_size": (self.hidden_size % self.num_heads == 0, f"a multiple of num_heads ({self.num_heads})"),
            "num_heads": (
                self.num_heads % self.num_kv_heads == 0,
                f"a multiple of num_kv_heads ({self.num_kv_heads})",
            ),
            "mrope_section": (
                2 * sum(self.mrope_section) * self.num_heads == self.hidden_size,
                f"three numbers that add up to half the head size ({self.hidden_size / self.num_heads / 2:g})",
            ),
            "vision_hidden_size": (
                self.vision_hidden_size % (4 * self.vision_heads) == 0,
                f"a multiple of 4 * vision_heads ({4 * self.vision_heads})",
            ),
            "full_attention_blocks": (
                all(0 <= block < self.vision_depth for block in self.full_attention_blocks),
                f"block numbers below vision_depth ({self.vision_depth})",
            ),
        }
        for name, (valid, allowed) in checks.items():
            if not valid:
                raise UserError(f"TinyConfig.{name} is {getattr(self, name)}; it must be {allowed}.")


DEFAULT_SPEC = TinyConfig()


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer with Qwen's special tokens and splitting rules.

    It is a `Qwen2Tokenizer` from the start: `AutoTokenizer` turns whatever lies in a Qwen2.5-VL folder into that
    class, whose splitting rules differ from plain byte-level BPE, so another class would encode otherwise after
    a reload.

    Args:
        texts: what to learn merges from.
        vocab_size: number of tokens, special ones included.

    Raises:
        UserError: `vocab_size` is too small, or the texts do not hold enough pairs to reach it.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"vocab_size is {vocab_size}; special tokens and bytes alone take {MIN_VOCAB_SIZE}.")
    trained = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    if trained.get_vocab_size() != vocab_size:
        size = trained.get_vocab_size()
        raise UserError(f"The texts yield only {size} tokens of {vocab_size}: pass more text or a smaller vocab_size.")
    model = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],  # pyright: ignore[reportArgumentType] - declared as strings
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END_OF_TURN, END_OF_TEXT)],
        model_max_length=MAX_TOKENS,
    )


def build_processor(
    tokenizer: Qwen2Tokenizer, *, patch_size: int = 14, min_pixels: int = 28 * 28, max_pixels: int = 128 * 28 * 28
) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor around the tokenizer; it takes frames as they are sampled already.

    Args:
        tokenizer: from `build_tokenizer`.
        patch_size: side of a vision patch in pixels, the model's.
        min_pixels: smaller images and frames are enlarged to this area.
        max_pixels: larger images and frames are reduced to this area.
    """
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}  # areas, whatever the names say
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size), patch_size=patch_size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(
            size=dict(size), patch_size=patch_size, do_sample_frames=False, cap_pixels_per_frame=False
        ),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(spec: TinyConfig, tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights in float32 for the sizes of `spec`; the same seed gives the same weights.

    The global random state is left as it was.
    """
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = tokenizer.get_vocab()
    ends = {"bos_token_id": ids[END_OF_TEXT], "pad_token_id": ids[END_OF_TEXT]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_hidden_layers": spec.num_layers,
            "num_attention_heads": spec.num_heads,
            "num_key_value_heads": spec.num_kv_heads,
            "max_position_embeddings": MAX_TOKENS,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": spec.rope_theta,
                "mrope_section": list(spec.mrope_section),
            },
            "initializer_range": spec.initializer_range,
            "eos_token_id": ids[END_OF_TURN],
            "tie_word_embeddings": spec.tie_word_embeddings,
            **ends,
        },
        vision_config={
            "depth": spec.vision_depth,
            "hidden_size": spec.vision_hidden_size,
            "intermediate_size": spec.vision_intermediate_size,
            "num_heads": spec.vision_heads,
            "out_hidden_size": spec.hidden_size,
            "patch_size": spec.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": spec.window_size,
            "fullatt_block_indexes": list(spec.full_attention_blocks),
            "initializer_range": spec.initializer_range,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=spec.tie_word_embeddings,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    # Two end tokens, as Qwen2.5-VL-Instruct ships them: the end of a turn and the end of the text.
    model.generation_config = GenerationConfig(eos_token_id=[ids[END_OF_TURN], ids[END_OF_TEXT]], **ends)
    return model.eval()


def write_tiny_model(output: Path, *, seed: int = 0, spec: TinyConfig = DEFAULT_SPEC) -> Path:
    """Write a complete Hugging Face folder that every `from_pretrained` reads.

    The folder appears complete or not at all. One written with the same arguments is kept as it is; one written
    with others is replaced. The tokenizer depends on `spec.vocab_size` alone, so models of different seeds read
    the same tokens.

    Args:
        output: folder to create.
        seed: decides the weights.
        spec: sizes of the model.

    Returns:
        `output`.

    Raises:
        UserError: `output` holds files that were not generated here.
    """

    def build(folder: Path) -> None:
        tokenizer = build_tokenizer(corpus(), spec.vocab_size)
        build_processor(tokenizer, patch_size=spec.patch_size).save_pretrained(folder)
        build_model(spec, tokenizer, seed).save_pretrained(folder)

    publish_folder(output, arguments={"model": "tiny", "seed": seed, "spec": asdict(spec)}, build=build)
    return output
