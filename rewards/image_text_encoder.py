"""Frozen SigLIP and SigLIP2 encoders: frames and texts in, unit vectors out that can be compared by cosine.

Shapes: N images or texts, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rewards.errors import UserError, check_choice
from rewards.types import EncoderDtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig, SiglipModel
    from transformers.processing_utils import ProcessorMixin

MODEL_TYPES = ("siglip", "siglip2")
"""`model_type` of the supported checkpoints; that of SigLIP2 with fixed resolution is "siglip"."""


@dataclass(eq=False)
class ImageTextEncoder:
    """The two towers of a SigLIP checkpoint, without gradient. The weights are read on first use.

    It is not a `torch.nn.Module`, so that its weights enter no checkpoint and no optimizer.

    Raises:
        UserError: the folder is missing, incomplete or holds another kind of model, or a setting is out of range.
            A name is looked up only on first use, so there the first call raises it.
    """

    model_name_or_path: str
    """A Hugging Face folder or name. A folder's configuration and processor are read at once."""
    _: KW_ONLY
    device: str = "auto"
    """The current CUDA device if there is one, else the CPU; or any device of torch."""
    dtype: EncoderDtype = "float32"
    """Of the weights and of the computation, even inside autocast."""
    max_tokens: int | None = None
    """Texts are cut to this many tokens, end-of-text token included; None takes the text tower's limit."""
    batch_size: int = 64
    """Images or texts per forward pass."""

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, get_args(EncoderDtype))
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be >= 1.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}; it must be >= 1, or null for the text tower's limit.")
        _check_device(self.device)
        if _looks_like_path(self.model_name_or_path):
            # Read now, so that a run fails before its first rollout and not after it.
            _ = self.processor
            _check_weights(self.model_name_or_path)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The checkpoint's configuration."""
        return _read_config(self.model_name_or_path)

    @cached_property
    def text_length(self) -> int:
        """Tokens that a text is cut to."""
        limit = self.config.text_config.max_position_embeddings
        if self.max_tokens is not None and self.max_tokens > limit:
            raise UserError(
                f"max_tokens is {self.max_tokens}, but the text tower of {self.model_name_or_path!r} reads {limit}; "
                f"give at most {limit}, or null."
            )
        return self.max_tokens or limit

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The checkpoint's image processor and tokenizer."""
        from transformers import AutoProcessor

        _ = self.text_length  # First, because the error about a missing configuration is the more helpful one.
        try:
            return AutoProcessor.from_pretrained(self.model_name_or_path)
        except ImportError as error:  # SigLIP's own tokenizer class reads a sentencepiece file.
            raise UserError(
                f"The tokenizer of {self.model_name_or_path!r} needs a package that is missing: {str(error).strip()} "
                "(pip install sentencepiece)"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"The processor of {self.model_name_or_path!r} cannot be read: {error}") from error

    @cached_property
    def model(self) -> SiglipModel:
        """The towers: frozen, in evaluation mode, on the device."""
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(
                self.model_name_or_path, config=self.config, dtype=getattr(torch, self.dtype)
            )
        except OSError as error:
            raise UserError(f"The checkpoint {self.model_name_or_path!r} is incomplete: {error}") from error
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return model.requires_grad_(False).eval().to(chosen)

    def encode_images(self, images: Sequence[Tensor]) -> Tensor:
        """Unit vectors of images.

        Args:
            images: N images [3, H, W] of any sizes, uint8.

        Returns:
            float32 [N, D] on the CPU.
        """
        return self._encode(images, self.image_inputs, self.model.get_image_features)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, each cut to `text_length` tokens.

        Returns:
            float32 [N, D] on the CPU.
        """
        return self._encode(texts, self.text_inputs, self.model.get_text_features)

    def image_inputs(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Inputs of the image tower: the bytes after the checkpoint's own resizing and normalization."""
        assert all(image.dtype == torch.uint8 for image in images), "images must be uint8"
        return dict(self.processor.image_processor(list(images), return_tensors="pt"))

    def text_inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of the text tower: token ids [N, limit], padded to the tower's limit.

        Both families were trained on lower-case text, though not every tokenizer is configured for it, and with
        attention to the padding: the tower's vector is that of the last position, so there is no attention mask.
        """
        tokenizer = self.processor.tokenizer
        lowered = [text.lower() for text in texts]
        cut = tokenizer(lowered, truncation=True, max_length=self.text_length, return_attention_mask=False)
        limit = self.config.text_config.max_position_embeddings
        ids = {"input_ids": cut["input_ids"]}
        padded = tokenizer.pad(ids, padding="max_length", max_length=limit, return_tensors="pt")
        return {"input_ids": padded["input_ids"]}  # [N, limit]

    def _encode(self, items: Sequence, inputs: Callable[[Sequence], dict[str, Tensor]], tower: Callable) -> Tensor:
        rows, dtype, device = [], getattr(torch, self.dtype), self.model.device
        for start in range(0, len(items), self.batch_size):
            given = {
                name: value.to(device, dtype if value.is_floating_point() else None)
                for name, value in inputs(items[start : start + self.batch_size]).items()
            }
            # The encoder keeps its own dtype inside a training step of mixed precision.
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                rows.append(normalize(tower(**given).pooler_output.float(), dim=-1).cpu())
        return torch.cat(rows)  # [N, D]


def _looks_like_path(model_name_or_path: str) -> bool:
    path = Path(model_name_or_path)
    return path.is_absolute() or model_name_or_path.startswith((".", "~")) or path.is_dir()


def _read_config(model_name_or_path: str) -> PretrainedConfig:
    from transformers import AutoConfig

    if _looks_like_path(model_name_or_path) and not (Path(model_name_or_path) / "config.json").is_file():
        raise UserError(
            f"The image-text encoder is {model_name_or_path!r}, but there is no config.json in that folder. Give the "
            "folder of a SigLIP or SigLIP2 checkpoint (config.json, *.safetensors, processor and tokenizer files) or a "
            "Hugging Face name such as google/siglip-so400m-patch14-384."
        )
    try:
        config = AutoConfig.from_pretrained(model_name_or_path)
    except OSError as error:
        raise UserError(
            f"The image-text encoder is {model_name_or_path!r}, which is neither a folder here nor a name that could "
            f"be downloaded: {error}"
        ) from error
    if config.model_type not in MODEL_TYPES:
        raise UserError(
            f"The image-text encoder {model_name_or_path!r} holds a {config.model_type!r} model, which is not a "
            f"two-tower image-text model of the types {', '.join(map(repr, MODEL_TYPES))}. Give a SigLIP or SigLIP2 "
            "checkpoint with both towers."
        )
    return config


def _check_weights(folder: str) -> None:
    if not any(path.suffix in (".safetensors", ".bin") for path in Path(folder).iterdir()):
        raise UserError(f"The checkpoint {folder!r} has no weights; put its *.safetensors files there.")


def _check_device(device: str) -> None:
    if device == "auto":
        return
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device is {device!r}; give auto, cpu, cuda or cuda:N.") from error
