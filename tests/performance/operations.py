"""The arithmetic that an update needs, counted by hand.

A product of [m, k] and [k, n] takes 2 m k n operations. A token costs 2 operations per weight that it meets in the
forward pass and 4 in the backward; attention costs 4 operations per query, key and head channel (scores and sum of
values) in the forward and 8 in the backward, causal pairs only. Not counted: norms, rotations, softmax, embeddings,
and whatever a method computes twice to save memory.

Shapes: G completions, P prompt tokens, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.performance.random_models import FRAME_PIXELS, MERGE, ModelSize, video_grid

FORWARD_AND_BACKWARD = 3
"""The backward takes twice the forward's operations."""
WINDOW_PATCHES = 64
"""Patches of a full window of the tower: 112 / 14 squared."""


def update_operations(size: ModelSize, prompt_tokens: int, lengths: Sequence[int], method: str) -> float:
    """Forward and backward of one group with completions of the given lengths."""
    count = len(lengths)
    shared = method in ("ours", "ours_sliced", "prefix_grouper")
    repeats = 1 if shared else count
    videos = count if method.startswith("repeated") else 1
    if method in ("ours", "ours_sliced"):
        inputs = [length - 1 for length in lengths]  # a last token predicts nothing
    else:  # rows of several completions are padded to the longest
        inputs = lengths if method in ("prefix_grouper", "strongest_single") else [max(lengths)] * count
    chunked = shared or method.startswith("strongest")
    predicted = sum(lengths) if chunked else count * (max(lengths) + 1)
    tokens = repeats * prompt_tokens + sum(inputs)
    pairs = repeats * prompt_tokens * (prompt_tokens + 1) / 2
    pairs += sum(length * prompt_tokens + length * (length + 1) / 2 for length in inputs)
    forward = (
        2 * tokens * decoder_weights(size)
        + 4 * pairs * size.hidden * size.layers
        + 2 * predicted * size.hidden * size.vocabulary
        + videos * vision_forward(size, prompt_tokens)
    )
    return FORWARD_AND_BACKWARD * forward


def decoder_weights(size: ModelSize) -> int:
    """Weights that one token meets in the decoder layers."""
    key_value = size.kv_heads * size.hidden // size.heads
    attention = 2 * size.hidden**2 + 2 * size.hidden * key_value
    return size.layers * (attention + 3 * size.hidden * size.intermediate)


def vision_forward(size: ModelSize, prompt_tokens: int) -> float:
    """Forward operations of the tower over the video of a prompt."""
    frames, rows, columns = video_grid(prompt_tokens)
    merged, width = frames * rows * columns, size.vision_hidden
    patches, per_frame = merged * MERGE**2, rows * columns * MERGE**2
    block = 4 * width**2 + 3 * width * size.vision_intermediate
    weights = patches * (size.vision_depth * block + 3 * 2 * FRAME_PIXELS**2 * width)
    weights += merged * ((MERGE**2 * width) ** 2 + MERGE**2 * width * size.hidden)
    full = len(size.full_attention_blocks)
    pairs = patches * (full * per_frame + (size.vision_depth - full) * min(per_frame, WINDOW_PATCHES))
    return 2 * weights + 4 * pairs * width
