"""SigLIP and SigLIP2 folders of the real classes, for tests and benchmarks: random weights, twelve words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

WORDS = ("<unk>", "<pad>", "</s>", "a", "red", "blue", "green", "ball", "moves", "to", "the", "left")
TEXT_LENGTH = 8
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"vocab_size": 32, "max_position_embeddings": TEXT_LENGTH, "bos_token_id": 2, "eos_token_id": 2, **TOWER}


def write_tiny_siglip(folder: Path, *, image_size: int = 16, tower: Mapping[str, int] = TOWER) -> Path:
    """A SigLIP that reads square images, with towers of the given sizes."""
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config={**TEXT, **tower}, vision_config={"image_size": image_size, "patch_size": 8, **tower}
    )
    SiglipModel(config).save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": image_size, "width": image_size})
    SiglipProcessor(images, _tokenizer()).save_pretrained(folder)
    return folder


def write_tiny_siglip2(folder: Path) -> Path:
    """A SigLIP2 of native aspect ratio, up to 16 patches of 8 x 8 pixels."""
    torch.manual_seed(0)
    config = Siglip2Config(text_config=TEXT, vision_config={"num_patches": 16, "patch_size": 8, **TOWER})
    Siglip2Model(config).save_pretrained(folder)
    images = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    Siglip2Processor(images, _tokenizer()).save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, split at whitespace; no end-of-text token is added."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", padding_side="right"
    )
