"""Batches hold what their samples held, and an epoch visits every record once, wherever it was interrupted."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from datamodules.collate import IGNORED_LABEL, PromptCollator, SFTCollator, SFTSample
from datamodules.encoding import patchify
from datamodules.sampler import ResumableSampler, sample_seed
from datamodules.types import EncodedPrompt, VideoRecord, VisionInput
from datamodules.video.types import PatchGeometry
from rewards.types import ProblemType
from tests.properties.strategies import ANY_TEXT

PAD = 0
RECORD = VideoRecord(
    problem_id="1",
    problem="What moves?",
    data_type="text",
    problem_type=ProblemType.OCR,
    solution="<answer>x</answer>",
    file=Path("data.json"),
    line=1,
)
TOKENS = st.lists(st.integers(1, 99), min_size=1, max_size=12).map(torch.tensor)


@st.composite
def encoded_prompts(draw: st.DrawFn) -> EncodedPrompt:
    vision = None
    if draw(st.booleans()):
        t, y, x = (draw(st.integers(1, 3)) for _ in range(3))
        vision = VisionInput(
            patches=torch.randint(0, 256, (t * y * 2 * x * 2, 6), dtype=torch.uint8),
            grid_thw=torch.tensor([[t, y * 2, x * 2]]),
            is_video=torch.tensor([draw(st.booleans())]),
            seconds_per_patch=torch.tensor([draw(st.floats(0, 10, width=32))]),
        )
    return EncodedPrompt(record=RECORD, input_ids=draw(TOKENS), vision=vision, frames=None)


PROMPTS = st.lists(encoded_prompts(), min_size=1, max_size=5)


@given(PROMPTS)
def test_prompts_are_padded_on_the_left_and_media_keep_their_order(prompts):
    batch = PromptCollator(pad_token_id=PAD)(prompts)
    for row, mask, prompt in zip(batch.input_ids, batch.attention_mask, prompts, strict=True):
        count = len(prompt.input_ids)
        assert torch.equal(row[-count:], prompt.input_ids) and not row[: len(row) - count].any()
        assert torch.equal(mask, (torch.arange(len(row)) >= len(row) - count).long())
    assert batch.input_ids.shape[1] == max(len(prompt.input_ids) for prompt in prompts)
    seen = [prompt.vision for prompt in prompts if prompt.vision is not None]
    assert (batch.vision is None) == (not seen)
    if seen:
        assert torch.equal(batch.vision.patches, torch.cat([vision.patches for vision in seen]))
        assert batch.vision.grid_thw.prod(1).sum() == len(batch.vision.patches)


@given(PROMPTS, st.data())
def test_selected_rows_are_the_batch_of_these_prompts(prompts, data):
    rows = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=6))
    collate = PromptCollator(pad_token_id=PAD)
    selected, wanted = collate(prompts).select(rows), collate([prompts[row] for row in rows])
    assert torch.equal(selected.input_ids, wanted.input_ids)
    assert torch.equal(selected.attention_mask, wanted.attention_mask)
    assert (selected.vision is None) == (wanted.vision is None)
    if wanted.vision is not None:
        assert all(torch.equal(getattr(selected.vision, name), value) for name, value in vars(wanted.vision).items())


@given(st.lists(st.tuples(encoded_prompts(), TOKENS), min_size=1, max_size=4))
def test_labels_are_the_targets_and_nothing_else(pairs):
    batch = SFTCollator(pad_token_id=PAD)([SFTSample(prompt=prompt, target_ids=target) for prompt, target in pairs])
    for row, mask, labels, (prompt, target) in zip(
        batch.input_ids, batch.attention_mask, batch.labels, pairs, strict=True
    ):
        whole = torch.cat([prompt.input_ids, target])
        assert torch.equal(row[: len(whole)], whole) and mask.sum() == len(whole) and mask[: len(whole)].all()
        assert torch.equal(labels[labels != IGNORED_LABEL], target)
        assert torch.equal(
            (labels != IGNORED_LABEL).nonzero().flatten(), len(prompt.input_ids) + torch.arange(len(target))
        )


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_patches_hold_every_pixel(frames, rows, columns, temporal, patch, merge):
    geometry = PatchGeometry(patch_size=patch, merge_size=merge, temporal_patch_size=temporal)
    side = geometry.grid
    pixels = torch.arange(frames * 3 * rows * columns * side**2).reshape(frames, 3, rows * side, columns * side)
    patches, grid = patchify(pixels, geometry)
    repeated = torch.cat([pixels, pixels[-1:].expand(-frames % temporal, -1, -1, -1)])
    assert patches.shape == (int(grid.prod()), 3 * temporal * patch**2)
    assert torch.equal(patches.flatten().sort().values, repeated.flatten().sort().values)


WORLDS = st.tuples(st.integers(1, 3), st.integers(1, 4))
"""Batch size, ranks."""


def samplers(records: int, world: tuple[int, int], **arguments: object) -> list[ResumableSampler]:
    batch, ranks = world
    return [
        ResumableSampler(records, batch_size=batch, rank=rank, world_size=ranks, **arguments) for rank in range(ranks)
    ]


def in_order(parts: list[list[int]]) -> list[int]:
    """Records of all ranks in the order of the epoch."""
    rounds = max(map(len, parts))
    return [part[number] for number in range(rounds) for part in parts if number < len(part)]


@given(st.integers(1, 60), WORLDS, st.integers(0, 5), st.integers(0, 3), st.booleans(), st.booleans())
def test_an_epoch_visits_every_record_once(records, world, seed, epoch, shuffle, drop_last):
    global_batch = world[0] * world[1]
    assume(not drop_last or records >= global_batch)
    ranks = samplers(records, world, seed=seed, shuffle=shuffle, drop_last=drop_last)
    for sampler in ranks:
        sampler.set_epoch(epoch)
    visited = [list(sampler) for sampler in ranks]
    assert [len(part) for part in visited] == [len(sampler) for sampler in ranks]
    flat = in_order(visited)
    assert len(set(flat)) == len(flat) == (records - records % global_batch if drop_last else records)
    if not shuffle:
        assert flat == list(range(len(flat)))


@given(st.integers(1, 60), WORLDS, WORLDS, st.integers(0, 5), st.integers(0, 2), st.integers(0, 30))
def test_a_resumed_epoch_visits_the_rest_in_order_on_any_ranks(records, before, after, seed, epoch, batches):
    size = before[0] * before[1]
    assume(records >= max(size, after[0] * after[1]) and batches < records // size)
    old, new = samplers(records, before, seed=seed), samplers(records, after, seed=seed)
    for sampler in old:
        sampler.set_epoch(epoch)
    whole = in_order([list(sampler) for sampler in old])
    state = old[0].state_dict(epoch=epoch, batches=batches)
    for sampler in new:
        sampler.load_state_dict(state)
    rest = in_order([list(sampler) for sampler in new])
    if new[0].epoch == epoch:
        left = (records - batches * size) // (after[0] * after[1]) * (after[0] * after[1])
        order = old[0]._order().tolist()
        assert rest == order[batches * size : batches * size + left] and order[: len(whole)] == whole
    else:
        assert records - batches * size < after[0] * after[1]  # not one batch was left
        assert new[0].epoch == epoch + 1


@given(st.integers(), st.integers(0, 100), ANY_TEXT | st.integers(), st.integers(0, 64))
def test_seeds_are_the_same_everywhere(seed, epoch, key, member):
    value = sample_seed(seed, epoch, key, member)
    assert 0 <= value < 2**63 and value == sample_seed(seed, epoch, str(key), member)
