"""A Qwen2.5-VL of about half a million parameters, built from nothing with Hugging Face's own classes.

The folder that `write_tiny_model` leaves behind is what a download of the real model would be (weights,
configuration, tokenizer, processor, chat template, generation settings), so the demo and the tests take the
same path as a 7B run. Nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


TEXT_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Rotary frequencies for time, height and width add up to half the head size.
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": MAX_TOKENS,
}
VISION_SIZES = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 128,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [0],
}
"""Sizes in the words of Qwen2.5-VL's configuration: 0.56M parameters, which learn the demo in about a minute of CPU
time."""
VOCAB_SIZE = 384
INITIALIZER_RANGE = 0.06
"""Standard deviation of the initial weights; at the usual 0.02 a model this small stays at chance."""


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer with Qwen's special tokens and splitting rules.

    It is a `Qwen2Tokenizer` from the start: `AutoTokenizer` turns whatever lies in a Qwen2.5-VL folder into that
    class, whose splitting rules differ from plain byte-level BPE, so another class would encode otherwise after
    a reload.

    Raises:
        UserError: the texts do not hold enough pairs to reach `vocab_size`, special tokens included.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

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


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor around the tokenizer; it takes frames as they are sampled already."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": 28 * 28, "longest_edge": 128 * 28 * 28}  # areas, whatever the names say
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size), patch_size=VISION_SIZES["patch_size"]),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(
            size=dict(size), patch_size=VISION_SIZES["patch_size"], do_sample_frames=False, cap_pixels_per_frame=False
        ),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: Qwen2Tokenizer, seed: int, vision_sizes: Mapping[str, Any] = VISION_SIZES
) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights in float32; the same seed gives the same weights. The global random state is left as it was."""
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = tokenizer.get_vocab()
    ends = {"bos_token_id": ids[END_OF_TEXT], "pad_token_id": ids[END_OF_TEXT]}
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT_SIZES,
            "vocab_size": len(tokenizer),
            "initializer_range": INITIALIZER_RANGE,
            "eos_token_id": ids[END_OF_TURN],
            "tie_word_embeddings": True,
            **ends,
        },
        vision_config={**vision_sizes, "initializer_range": INITIALIZER_RANGE},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    # Two end tokens, as Qwen2.5-VL-Instruct ships them: the end of a turn and the end of the text.
    model.generation_config = GenerationConfig(eos_token_id=[ids[END_OF_TURN], ids[END_OF_TEXT]], **ends)
    return model.eval()


def write_tiny_model(output: Path, *, seed: int = 0, **vision_sizes: Any) -> Path:
    """Write a complete Hugging Face folder that every `from_pretrained` reads.

    The folder appears complete or not at all. One written with the same arguments is kept as it is; one written
    with others is replaced.

    Args:
        output: folder to create.
        seed: decides the weights; models of all seeds read the same tokens.
        vision_sizes: instead of those of `VISION_SIZES`.

    Returns:
        `output`.

    Raises:
        UserError: `output` holds files that were not generated here.
    """
    sizes = VISION_SIZES | vision_sizes

    def build(folder: Path) -> None:
        tokenizer = build_tokenizer(corpus(), VOCAB_SIZE)
        build_processor(tokenizer).save_pretrained(folder)
        build_model(tokenizer, seed, sizes).save_pretrained(folder)

    publish_folder(output, arguments={"model": "tiny", "seed": seed, "vision_sizes": sizes}, build=build)
    return output
