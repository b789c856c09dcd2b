"""Does the reasoning describe what can be seen? The semantic-consistency reward of VideoRFT.

Shapes: F frames, V vectors of a clip (1 or F), D embedding size.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rewards.answer_format import parse_response
from rewards.base import Reward, naming_failures
from rewards.image_text_encoder import EncoderDtype, ImageTextEncoder
from rewards.types import RewardInput

Variant = Literal["paper", "code"]
FULL_STOP = "."


def reasoning_span(completion: str) -> str:
    """The text whose first tokens are compared with the frames: the reasoning after its first full stop.

    The first sentence tends to restate the question. The whole reasoning if it has no full stop, the whole completion
    if it has no closed think element. Any "." is a full stop, as in the published code, that of "3.5" too.
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
        ValueError: another shape, dtype or scale. Fractions between 0 and 1 are refused, not multiplied, because a
            wrong guess would show the encoder other colors.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.numel() == 0:
        raise ValueError(f"frames have shape {list(frames.shape)}; they must be [F, 3, H, W], F >= 1.")
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise ValueError(f"frames are {frames.dtype}; give uint8, or floats that hold whole numbers from 0 to 255.")
    converted = frames.clamp(0, 255).to(torch.uint8)
    if not torch.equal(converted.to(frames.dtype), frames) or converted.max() == 1:
        raise ValueError(
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
    after its only full stop scores 0. `code` is the published code's: the same formula per frame, then the mean; such
    reasoning is compared as an empty text. A text-only record scores 0, for there is nothing to be consistent with;
    an image is a clip of one frame.

    Per batch of groups, each clip's frames and each distinct text are encoded once. A completion whose gate is closed
    is not encoded and has the raw score 0; to measure those too, list the reward without a gate.

    Args:
        weight: factor of the score in the total.
        gate: name of a reward of the suite; this one counts only where that one's raw score is above 0. Null counts
            and measures everywhere.
        name: name in logs and in the breakdown; "semantic" if not given.
        problem_types: the kinds of question that this reward is for, as spelled in records; null for all.
        model_name_or_path: Hugging Face folder or name of a SigLIP or SigLIP2 checkpoint. A folder is checked at once,
            the weights are read when the first group is scored.
        variant: paper or code.
        scale: factor of the cosine, w in the paper.
        num_frames: at most so many frames of the clip, uniformly chosen, are compared.
        max_tokens: tokens of the reasoning that are compared, end-of-text token included; null takes all that the text
            tower can read (64 for the published models).
        device: auto (the current CUDA device if there is one, else the CPU) or a device of torch.
        dtype: of the encoder's weights and computation. bfloat16 halves its memory and rounds cosines to about 0.004.
        batch_size: frames or texts per forward pass.
        cache_size: clips whose vectors are kept across epochs, the least recently used leaving first; 0 keeps none. One
            takes 4 * D bytes (`code`: 4 * D * F), D = 1152 for so400m: 19 MB for 4096 clips (`code`: 300 MB).

    Raises:
        ValueError: a setting is out of range, or the folder is missing or holds no such model.
    """

    name = "semantic"

    def __init__(
        self,
        weight: float = 1.0,
        gate: str | None = "accuracy",
        name: str | None = None,
        problem_types: list[str] | None = None,
        model_name_or_path: str = "google/siglip-so400m-patch14-384",
        variant: Variant = "paper",
        scale: float = 2.0,
        num_frames: int = 16,
        max_tokens: int | None = None,
        device: str = "auto",
        dtype: EncoderDtype = "float32",
        batch_size: int = 64,
        cache_size: int = 4096,
    ) -> None:
        super().__init__(weight=weight, gate=gate, name=name, problem_types=problem_types)
        _check_settings(self.name, variant, scale, num_frames, cache_size)
        # The suite hands out the raw scores of what is required: with them, closed gates need no encoding.
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
        """Loads the encoder, so that a name that cannot be had is said before the first rollout."""
        self.encoder.load()

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[float]:
        return self.score_batch([group], [raw])[0]

    def score_batch(
        self, groups: Sequence[RewardInput], raw: Sequence[Mapping[str, Sequence[float]]]
    ) -> list[list[float]]:
        spans = [self._spans(group, group_raw) for group, group_raw in zip(groups, raw, strict=True)]
        clips = self._clip_vectors(
            [None if set(row) == {None} else group for group, row in zip(groups, spans, strict=True)]
        )
        texts = self._text_vectors(spans)
        return [
            [0.0 if span is None else consistency(texts[span], clip, self.scale) for span in row]
            for row, clip in zip(spans, clips, strict=True)
        ]

    def _spans(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[str | None]:
        """The text to compare, per completion; None where the score is 0 without looking."""
        is_open = [True] * len(group.completions) if self.gate is None else [score > 0 for score in raw[self.gate]]
        if group.frames is None:
            return [None] * len(is_open)
        spans = [reasoning_span(completion) for completion in group.completions]
        return [
            span if opened and (span or self.variant == "code") else None
            for span, opened in zip(spans, is_open, strict=True)
        ]

    def _text_vectors(self, spans: Sequence[Sequence[str | None]]) -> dict[str, Tensor]:
        distinct = list(dict.fromkeys(span for row in spans for span in row if span is not None))
        return dict(zip(distinct, self.encoder.encode_texts(distinct), strict=True)) if distinct else {}

    def _clip_vectors(self, groups: Sequence[RewardInput | None]) -> list[Tensor | None]:
        """[V, D] per group, encoding the clips that are not in the cache; None for the groups that are None."""
        chosen = [None if group is None else self._chosen_frames(group) for group in groups]
        keys = [None if frames is None else _digest(frames) for frames in chosen]
        missing = {
            key: frames for key, frames in zip(keys, chosen, strict=True) if key is not None and key not in self._clips
        }
        known = {key: self._clips[key] for key in keys if key in self._clips} | self._encode_clips(missing)
        self._remember(known)
        return [None if key is None else known[key] for key in keys]

    def _chosen_frames(self, group: RewardInput) -> Tensor:
        with naming_failures(self, [group]):
            frames = as_bytes(group.frames)
        return frames[uniform_indices(len(frames), self.num_frames)]

    def _encode_clips(self, clips: Mapping[bytes, Tensor]) -> dict[bytes, Tensor]:
        if not clips:
            return {}
        vectors = self.encoder.encode_images([frame for frames in clips.values() for frame in frames])
        of_clips = vectors.split([len(frames) for frames in clips.values()])
        if self.variant == "paper":
            of_clips = [normalize(frames.mean(dim=0, keepdim=True), dim=-1) for frames in of_clips]  # [1, D]
        return dict(zip(clips, of_clips, strict=True))

    def _remember(self, clips: Mapping[bytes, Tensor]) -> None:
        for key, vectors in clips.items():
            # A copy, since a view would keep the vectors of the whole batch alive.
            self._clips[key] = vectors.clone() if key not in self._clips else vectors
            self._clips.move_to_end(key)
        while len(self._clips) > self.cache_size:
            self._clips.popitem(last=False)


def _digest(frames: Tensor) -> bytes:
    """Identifies a clip by what is seen in it: sizes and every byte, a few milliseconds for a clip of training size."""
    digest = hashlib.blake2b(repr(list(frames.shape)).encode(), digest_size=16)
    digest.update(frames.cpu().contiguous().numpy())
    return digest.digest()


def _check_settings(name: str, variant: str, scale: float, num_frames: int, cache_size: int) -> None:
    if variant not in get_args(Variant):
        raise ValueError(f"Reward {name!r} has variant {variant!r}; it must be one of {', '.join(get_args(Variant))}.")
    if not 0 < scale < float("inf"):
        raise ValueError(f"Reward {name!r} has scale {scale}; it must be finite and > 0 (2 in the paper).")
    if num_frames < 1:
        raise ValueError(f"Reward {name!r} has num_frames {num_frames}; it must be >= 1.")
    if cache_size < 0:
        raise ValueError(f"Reward {name!r} has cache_size {cache_size}; it must be >= 0 (0 keeps no clip).")
