"""Does the reasoning describe what can be seen? The semantic-consistency reward of VideoRFT.

Shapes: F frames, V vectors of a clip (1 or F), D embedding size.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from rewards.answer_format import parse_response
from rewards.base import Reward
from rewards.errors import UserError, check_choice
from rewards.types import EncoderDtype, RewardInput

if TYPE_CHECKING:
    from torch import Tensor

Variant = Literal["paper", "code"]
FULL_STOP = "."


def reasoning_span(completion: str) -> str:
    """The text whose first tokens are compared with the frames: the reasoning after its first full stop.

    The first sentence tends to restate the question. Without a full stop it is the whole reasoning, without a closed
    think element the whole completion. Any "." is a full stop, even that of "3.5", as in the published code.
    """
    reasoning = parse_response(completion).think
    if reasoning is None:
        return completion
    _, stop, rest = reasoning.partition(FULL_STOP)
    return rest.strip() if stop else reasoning


def uniform_indices(total: int, count: int) -> list[int]:
    """The middle frames of `count` equal stretches of a clip; all frames if it has no more than `count`."""
    if total <= count:
        return list(range(total))
    return [(2 * stretch + 1) * total // (2 * count) for stretch in range(count)]


def as_bytes(frames: Tensor) -> Tensor:
    """Frames as uint8 without changing a value: uint8, or whole numbers on the 0 to 255 scale stored as floats.

    Args:
        frames: [F, 3, H, W].

    Raises:
        UserError: another shape, dtype or scale. Fractions between 0 and 1 are refused rather than multiplied by 255,
            because a wrong guess would show the encoder other colors.
    """
    import torch

    if frames.ndim != 4 or frames.shape[1] != 3 or frames.numel() == 0:
        raise UserError(f"frames have shape {list(frames.shape)}; they must be [F, 3, H, W], F >= 1.")
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise UserError(f"frames are {frames.dtype}; give uint8, or floats that hold whole numbers from 0 to 255.")
    converted = frames.clamp(0, 255).to(torch.uint8)
    if not torch.equal(converted.to(frames.dtype), frames) or converted.max() == 1:
        raise UserError(
            f"frames are {frames.dtype} from {frames.min():g} to {frames.max():g}; floats must be whole numbers on the "
            "0 to 255 scale. Multiply frames of the 0 to 1 scale by 255 and round them."
        )
    return converted


def consistency(text: Tensor, clip: Tensor, scale: float) -> float:
    """Mean over the clip's vectors v of min(1, scale * max(cos(text, v), 0)).

    Args:
        text: unit vector [D].
        clip: unit vectors [V, D].
        scale: w of the paper.
    """
    return (scale * (clip @ text)).clamp(0.0, 1.0).mean().item()


class SemanticReward(Reward):
    """Agreement of the reasoning with the frames that the policy saw, in [0, 1], measured by SigLIP or SigLIP2.

    `paper` compares with the mean of the frames' unit vectors: min(1, scale * max(cos, 0)); reasoning with nothing
    after its only full stop scores 0. `code` follows the published code: the same formula per frame, then the mean;
    such reasoning is compared as an empty text. A text-only record scores 0, because there is nothing to agree with;
    an image is a clip of one frame.

    Each frame and each distinct text of a group is encoded once. A completion whose gate is closed is not encoded and
    has the raw score 0; to measure those too, list the reward without a gate.

    Args:
        gate: name of another reward of the suite; this one counts only where that one's raw score is above 0. null
            counts and measures everywhere.
        model_name_or_path: Hugging Face folder or name of a SigLIP or SigLIP2 checkpoint. A folder is checked at once,
            the weights are read when the first group is scored.
        variant: paper or code.
        scale: factor of the cosine, w in the paper.
        num_frames: at most this many frames of the clip, uniformly chosen, are compared.
        max_tokens: tokens of the reasoning that are compared, end-of-text token included; null takes all that the text
            tower can read (64 for the published models).
        device: auto (the current CUDA device if there is one, else the CPU) or a device of torch.
        dtype: of the encoder's weights and computation. bfloat16 halves its memory and rounds cosines to about 0.004.
        batch_size: frames or texts per forward pass.
        cache_size: clips whose vectors are kept across epochs; beyond that the least recently used is dropped. 0 keeps
            none. A clip takes 4 * D bytes (`code`: 4 * D * F), D = 1152 for so400m: 19 MB for 4096 clips (`code`: 300
            MB).
        kwargs: weight, name and problem_types, as for every `Reward`.

    Raises:
        UserError: a setting is out of range, or the folder is missing or holds no such model.
    """

    name = "semantic"

    def __init__(
        self,
        gate: str | None = "accuracy",
        model_name_or_path: str = "google/siglip-so400m-patch14-384",
        variant: Variant = "paper",
        scale: float = 2.0,
        num_frames: int = 16,
        max_tokens: int | None = None,
        device: str = "auto",
        dtype: EncoderDtype = "float32",
        batch_size: int = 64,
        cache_size: int = 4096,
        **kwargs: Any,
    ) -> None:
        # Torch is imported late here: whoever wants an error of this package must not wait for it.
        from rewards.image_text_encoder import ImageTextEncoder

        super().__init__(gate=gate, **kwargs)
        check_choice(f"Reward {self.name!r}: variant", variant, get_args(Variant))
        if not 0 < scale < float("inf"):
            raise UserError(f"Reward {self.name!r} has scale {scale}; it must be finite and > 0 (2 in the paper).")
        if num_frames < 1:
            raise UserError(f"Reward {self.name!r} has num_frames {num_frames}; it must be >= 1.")
        if cache_size < 0:
            raise UserError(f"Reward {self.name!r} has cache_size {cache_size}; it must be >= 0 (0 keeps no clip).")
        # The suite passes the raw scores of required rewards: with them, closed gates need no encoding.
        self.requires = () if gate is None else (gate,)
        self.variant = variant
        self.scale = scale
        self.num_frames = num_frames
        self.cache_size = cache_size
        self.encoder = ImageTextEncoder(
            model_name_or_path, device=device, dtype=dtype, max_tokens=max_tokens, batch_size=batch_size
        )
        self._clips: OrderedDict[bytes, Tensor] = OrderedDict()

    def prepare(self) -> None:
        """Load the encoder, so that a checkpoint that cannot be loaded stops the run before the first rollout."""
        _ = self.encoder.processor, self.encoder.model  # otherwise read on first use

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[float]:
        spans = self._spans(group, raw)
        distinct = list(dict.fromkeys(span for span in spans if span is not None))
        if group.frames is None or not distinct:
            return [0.0] * len(spans)
        clip = self._clip_vectors(group.frames)
        texts = dict(zip(distinct, self.encoder.encode_texts(distinct), strict=True))
        return [0.0 if span is None else consistency(texts[span], clip, self.scale) for span in spans]

    def _spans(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[str | None]:
        """The text to compare, per completion; None where the score is 0 without looking."""
        is_open = [True] * len(group.completions) if self.gate is None else [score > 0 for score in raw[self.gate]]
        spans = [reasoning_span(completion) for completion in group.completions]
        return [
            span if opened and (span or self.variant == "code") else None
            for span, opened in zip(spans, is_open, strict=True)
        ]

    def _clip_vectors(self, frames: Tensor) -> Tensor:
        """[V, D] of a clip [F, 3, H, W], from the cache or encoded now."""
        from torch.nn.functional import normalize

        frames = as_bytes(frames)
        frames = frames[uniform_indices(len(frames), self.num_frames)]
        key = _digest(frames)
        vectors = self._clips.pop(key, None)
        if vectors is None:
            vectors = self.encoder.encode_images(list(frames))  # [F, D]
            if self.variant == "paper":
                vectors = normalize(vectors.mean(dim=0, keepdim=True), dim=-1)  # [1, D]
        self._clips[key] = vectors  # the most recently used clip comes last
        if len(self._clips) > self.cache_size:
            self._clips.popitem(last=False)
        return vectors


def _digest(frames: Tensor) -> bytes:
    """Identifies a clip by its sizes and every byte, in a few milliseconds for a clip of training size."""
    digest = hashlib.blake2b(repr(list(frames.shape)).encode(), digest_size=16)
    digest.update(frames.cpu().contiguous().numpy().data)
    return digest.digest()
