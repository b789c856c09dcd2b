"""How much memory a training step takes per rank, from sizes alone: sums of what the code keeps, no weights.

Counted are weights, reference, optimizer state, gradients, what autograd saves, the largest temporaries of each phase
and the rollout's caches. Not counted: the CUDA context and fragmentation of the allocator (`memory_report` leaves room
for both), libraries' workspaces, dequantized layers, rewards' own models, inputs on the host and loader processes.
Every completion is taken to reach its token limit. Frozen weights save some activations that are counted all the same.
A Qwen2-VL tower is treated as Qwen2.5-VL's.

Shapes: B prompts, m of them per backward pass, G completions per prompt, S = m G sequences, P prompt tokens, C
completion tokens, L tokens of the packed row, N vision patches of D numbers, H and I hidden and feed-forward size, E
and F those of the tower, K key or value width (KV heads times head size), V vocabulary. Bytes per number: c of the
computation, r of the language model's residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning_modules.memory.sizes import Architecture, Estimate, PartSize, Setup, Workload
from lightning_modules.policy.group_cache import FIRST_CAPACITY

SAMPLER_COPIES = 12
"""Float32 equivalents of the logits [S, V] that exist while a token is drawn: raw, scaled and filtered
log-probabilities, the sorted ones with their int64 order, and the float64 cumulative sum with its temporaries."""


def decoder_layer_bytes(a: Architecture, s: Setup, work: Workload) -> float:
    """What one decoder layer saves for its backward pass.

    2 norms: float32 input and normalized copy, L H (4 + r) each; linear inputs: n c L H, where n = 3 (into q/k/v, o,
    gate/up), or 6 under autocast, which casts per layer; feed-forward: 4 c L I; queries and outputs: 2 c L H;
    keys and values: 2 c L K, and expanded per completion 2 c S (P + C - 1) K; log-sum-exps: 4 L heads. Where the CPU
    computes, c m (C - 1)(P + C - 1) for causal masks; CUDA kernels need none, but repeat keys in float32.
    """
    row, own = work.row_tokens, work.completion_tokens - 1
    repeats = a.heads // a.kv_heads if s.cuda and s.compute_bytes >= 4 else 1
    width, c = a.kv_heads * a.head_size * repeats, s.compute_bytes
    norms = 2 * row * (a.hidden * (4 + s.residual_bytes) + 4)
    linears = (6 if s.mixed else 3) * c * row * a.hidden
    attention = c * row * (2 * a.hidden + 2 * width) + 4 * row * a.heads
    if work.sampling:
        sequences, reach = work.micro_prompts * work.group_size, work.prompt_tokens + own
        attention += 2 * c * sequences * reach * width
        attention += 0 if s.cuda else c * work.micro_prompts * own * reach
    return norms + linears + attention + 4 * c * row * a.intermediate


def vision_layer_bytes(a: Architecture, s: Setup, patches: int, *, full: bool) -> float:
    """What one tower layer saves: norms 2 N E (4 + c); linear inputs n c N E, n = 3, or 4 under autocast; feed-forward
    4 c N F; attention over whole patches 6 c N E (rotated q and k, the joint projection that v is a view of, output),
    within windows 4 c N E (q, k and v sorted by window, output); log-sum-exps 4 N heads."""
    c = s.compute_bytes
    wide = 2 * (4 + c) + (4 if s.mixed else 3) * c + (6 if full else 4) * c
    return patches * (a.vision_hidden * wide + 4 * c * a.vision_intermediate + 4 * a.vision_heads + 8)


def _tower_ends_bytes(a: Architecture, s: Setup, patches: int) -> float:
    """Normalized patches c N D with their bytes; merger: norm N E (4 + c) and 3 c N E of its two layers."""
    return patches * (a.patch_values * (s.compute_bytes + 1) + a.vision_hidden * (4 + 4 * s.compute_bytes))


def head_bytes(a: Architecture, s: Setup, work: Workload) -> float:
    """Temporaries of `token_statistics` at its worse end: forward two float32 copies of half a chunk of logits;
    backward one float32 copy of a chunk and its cast; then the states' gradient in float32 and two of their copies,
    the whole row of hidden states, and under autocast a cast of the output weights."""
    c, narrow = s.compute_bytes, s.compute_bytes < 4
    forward = 8 * min(max(s.chunk_rows // 2, 1), work.predicted) * a.vocabulary
    backward = (4 + c if narrow else c) * min(s.chunk_rows, work.predicted) * a.vocabulary
    states = work.predicted * a.hidden * (max(4, c) + 2 * c) + work.row_tokens * a.hidden * s.residual_bytes
    return max(forward, backward) + states + (c * a.vocabulary * a.hidden if s.mixed else 0)


def rollout_bytes(a: Architecture, s: Setup, work: Workload) -> tuple[float, float, float]:
    """Prompt cache, completion cache, largest temporaries.

    A cached key has r bytes (the rotation takes the residual's precision) and a value c. Prompts: layers B P K (r + c),
    once per group. Completions: layers B G cap K (r + c), where the room cap doubles from 64 to reach C - 1. Prefill:
    B P (3 c I + 4 r H) or the tower's N (3 c F + 6 c E) per prompt. A token: one layer's keys and values in float32,
    three copies of float32 scores B G heads (P + C), and `SAMPLER_COPIES` of B G V.
    """
    sequences, c, r = work.prompts * work.group_size, s.compute_bytes, s.residual_bytes
    width, capacity = a.kv_heads * a.head_size, FIRST_CAPACITY
    while capacity < work.completion_tokens - 1:
        capacity *= 2
    prompt_cache = a.layers * work.prompts * work.prompt_tokens * width * (r + c)
    own_cache = a.layers * sequences * capacity * width * (r + c)
    tokens, patches = work.prompts * work.prompt_tokens, work.prompts * work.patches
    prefill = max(
        tokens * (3 * c * a.intermediate + 4 * r * a.hidden),
        patches * (3 * c * a.vision_intermediate + 6 * c * a.vision_hidden + 5 * a.patch_values),
    )
    copies = 8 * width * (tokens + sequences * work.completion_tokens) if c < 4 else 0
    scores = 12 * sequences * a.heads * (work.prompt_tokens + work.completion_tokens)
    draw = copies + scores + 4 * SAMPLER_COPIES * sequences * a.vocabulary
    cast = c * a.vocabulary * a.hidden if s.mixed else 0
    return prompt_cache, own_cache, max(prefill, draw) + cast


def estimate(a: Architecture, parts: Sequence[PartSize], s: Setup, work: Workload) -> Estimate:
    """Everything together, on one rank."""
    trainable = sum(part.trainable for part in parts)
    gradients = trainable * s.trained_bytes * s.share
    if s.replicated:
        gradients *= 2  # DDP's buckets
    activations = _activations(a, parts, s, work)
    rollout = rollout_bytes(a, s, work) if work.sampling else (0.0, 0.0, 0.0)
    gathered = rollout_gathered = 0.0
    if s.sharded:
        rollout_gathered = sum(part.parameters * min(part.bytes_each, s.compute_bytes) for part in parts)
        gathered = _gathered_bytes(parts, s, work)
    weights = sum(part.parameters * part.bytes_each for part in parts) * s.share
    return Estimate(
        weights=weights,
        reference=weights if s.reference else 0.0,
        optimizer=trainable * s.optimizer_bytes * s.share,
        gradients=gradients,
        casts=activations.language_casts + activations.vision_casts,
        gathered=gathered,
        language_activations=activations.language,
        vision_activations=activations.vision,
        recomputed=max(activations.layer, activations.block),
        head=activations.head,
        prompt_cache=rollout[0],
        completion_cache=rollout[1],
        rollout_temporaries=rollout[2] + (rollout_gathered if work.sampling else 0.0),
        update_extra=gathered + _update_peak(a, parts, s, work, activations, gradients),
        step_extra=gradients + (0.0 if s.fused_optimizer else _step_copies(a, s, trainable)),
    )


class _Activations(NamedTuple):
    language: float
    vision: float
    language_casts: float
    """Copies of weights in the type of the computation that are kept along with the activations."""
    vision_casts: float
    layer: float
    """One decoder layer under backward: gradients, and what checkpointing computes again."""
    block: float
    """The same of the tower."""
    head: float
    one_layer: float


def _activations(a: Architecture, parts: Sequence[PartSize], s: Setup, work: Workload) -> _Activations:
    """Kept from forward to backward: all layers' intermediates, or with checkpointing their inputs; the final norm,
    rotary tables and predicting states; the tower's ends. Under backward: 2 c L I + 2 r L H, of the tower
    2 c N (F + E). Lightning's autocast caches nothing: a linear layer's copy of its weights is kept for its backward
    pass, or with checkpointing made again."""
    row, patches, c, r = work.row_tokens, work.micro_prompts * work.patches, s.compute_bytes, s.residual_bytes
    layer = decoder_layer_bytes(a, s, work)
    language = a.layers * (row * a.hidden * r if s.checkpointing else layer)
    language += row * (a.hidden * (4 + r) + 2 * a.head_size * r) + work.predicted * a.hidden * c
    full, window = (vision_layer_bytes(a, s, patches, full=full) for full in (True, False))
    if s.checkpointing:
        vision = a.vision_layers * patches * a.vision_hidden * c
    else:
        vision = a.vision_full_layers * full + (a.vision_layers - a.vision_full_layers) * window
    vision += _tower_ends_bytes(a, s, patches)
    layer_work = 2 * row * (c * a.intermediate + r * a.hidden)
    block_work = 2 * c * patches * (a.vision_intermediate + a.vision_hidden)
    casts = {part.name: c * part.linear for part in parts} if s.mixed else {}
    kept = (casts.get("language_model", 0.0), casts.get("vision_tower", 0.0) + casts.get("merger", 0.0))
    if s.checkpointing:
        layer_work += layer + kept[0] / a.layers
        block_work += full + kept[1] / a.vision_layers
        kept = (0.0, 0.0)
    if s.vision_frozen:
        vision, block_work = work.prompts * work.patches // a.merge**2 * a.hidden * c, 0.0
        kept = (kept[0], 0.0)
    return _Activations(language, vision, *kept, layer_work, block_work, head_bytes(a, s, work), layer)


def _update_peak(
    a: Architecture, parts: Sequence[PartSize], s: Setup, work: Workload, held: _Activations, gradients: float
) -> float:
    """Most that activations, temporaries and gradients take together.

    While a lone micro-batch runs backward, activations go as gradients come, so this is the largest of: output
    projection with all activations; last decoder layer; first decoder layer with the decoder's gradients; tower; all
    gradients (and, tied, a second one of the embeddings). Fine-tuning (Lightning's automatic optimization) drops the
    gradients of the step before only after the forward pass, so there they meet all activations. With more
    micro-batches gradients are there from the start, and one more of the largest parameter while it is added.
    """
    gradient = {part.name: part.trainable * s.trained_bytes * s.share for part in parts}
    tables, decoder = gradient["embeddings"], gradient["language_model"] + gradient.get("adapters", 0.0)
    output = tables if a.tied else tables / 2
    table = a.vocabulary * a.hidden * s.trained_bytes * s.share if tables else 0.0
    vision = held.vision + held.vision_casts
    everything = held.language + held.language_casts + vision
    points = [
        (everything + held.head, output),
        (everything + held.layer, output + decoder / a.layers),
        (vision + held.layer + (0.0 if s.checkpointing else held.one_layer), output + decoder),
        (vision + held.block, output + decoder),
        (table if a.tied else 0.0, sum(gradient.values())),
    ]
    if not work.sampling:
        points.append((everything + held.head, sum(gradient.values())))
    if work.micro_batches == 1 and not s.replicated:
        return max(memory + arrived for memory, arrived in points)
    return max(memory for memory, _ in points) + gradients + table


def _gathered_bytes(parts: Sequence[PartSize], s: Setup, work: Workload) -> float:
    """Embeddings stay gathered; of the layers one computes while the next arrives, and one gradient leaves. Without
    an exchange after every micro-batch, whole gradients wait for the last one."""
    layers = max(part.largest_layer for part in parts)
    tables = sum(part.parameters for part in parts if part.name == "embeddings")
    waiting = sum(part.trainable for part in parts) if work.micro_batches > 1 and not s.reduce_every_backward else 0
    return (tables + 3 * layers) * s.compute_bytes + waiting * s.trained_bytes


def _step_copies(a: Architecture, s: Setup, trainable: int) -> float:
    """AdamW over all parameters at once holds the root of the second moment. The CPU takes one parameter at a time,
    with the root and its quotient."""
    return (trainable if s.cuda else 2 * min(trainable, a.vocabulary * a.hidden)) * s.trained_bytes * s.share
