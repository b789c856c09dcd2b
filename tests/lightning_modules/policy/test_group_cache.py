"""The group cache against ordinary attention over a repeated, padded cache."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lightning_modules.functional.masking import length_mask
from lightning_modules.policy.group_cache import FIRST_CAPACITY, GroupCache

B, G, P, HEADS, KV_HEADS, D = 3, 4, 7, 6, 2, 8


def random_prompts(generator):
    """Keys and values of two layers."""
    return [tuple(torch.randn(B, KV_HEADS, P, D, generator=generator).double() for _ in range(2)) for _ in range(2)]


def expected_output(query, prompt, own, mask, rows_prompt):
    key = torch.cat([prompt[0][rows_prompt], own[0]], dim=2)
    value = torch.cat([prompt[1][rows_prompt], own[1]], dim=2)
    allowed = torch.cat([mask[rows_prompt], torch.ones(len(query), own[0].shape[2], dtype=torch.bool)], dim=1)
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=allowed[:, None, None], scale=0.3, enable_gqa=True
    )
    return output.transpose(1, 2)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kept", [None, [0, 1, 2, 5, 11], [8, 9, 10, 11], [3]])
def test_attention_over_a_shared_prompt(padded, kept):
    generator = torch.Generator().manual_seed(0)
    prompts = random_prompts(generator)
    lengths = [P - 3, P, P - 1] if padded else [P] * B
    mask = length_mask(torch.tensor(lengths), P)
    cache = GroupCache(prompts, lengths, G)
    rows_prompt = torch.arange(B).repeat_interleave(G)
    own = [(torch.empty(B * G, KV_HEADS, 0, D).double(),) * 2 for _ in range(2)]
    for step in range(FIRST_CAPACITY + 3):  # beyond the first capacity
        if step == 2 and kept is not None:
            rows = torch.tensor(kept)
            cache.keep(rows)
            rows_prompt = rows_prompt[rows]
            own = [(keys[rows], values[rows]) for keys, values in own]
        for layer, prompt in enumerate(prompts):
            count = len(rows_prompt)
            query = torch.randn(count, HEADS, 1, D, generator=generator).double()
            new = [torch.randn(count, KV_HEADS, 1, D, generator=generator).double() for _ in range(2)]
            own[layer] = tuple(torch.cat([old, fresh], dim=2) for old, fresh in zip(own[layer], new, strict=True))
            keys, values = cache.update(*new, layer)
            torch.testing.assert_close(keys, own[layer][0])
            actual = cache.attend(query, keys, values, layer, 0.3)
            expected = expected_output(query, prompt, own[layer], mask, rows_prompt)
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert cache.length == FIRST_CAPACITY + 3


def test_prompts_are_held_once_and_dropped_when_done():
    prompts = random_prompts(torch.Generator().manual_seed(0))
    cache = GroupCache(prompts, [P] * B, G)
    assert cache.prompts[0][0].shape[0] == B  # not B * G
    cache.keep(torch.tensor([8, 10]))
    assert cache.prompts[0][0].shape[0] == 1
    assert torch.equal(cache.prompts[0][0][0], prompts[0][0][2])


def test_half_precision_is_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    prompts = random_prompts(generator)
    exact = GroupCache(prompts, [P] * B, G)
    half = GroupCache([(keys.bfloat16(), values.bfloat16()) for keys, values in prompts], [P] * B, G)
    exact.prompts = [(keys.double(), values.double()) for keys, values in half.prompts]
    query, key, value = (
        torch.randn(B * G, h, 1, D, generator=generator).bfloat16() for h in (HEADS, KV_HEADS, KV_HEADS)
    )
    actual = half.attend(query, *half.update(key, value, 0), 0, 0.3)
    expected = exact.attend(query.double(), *exact.update(key.double(), value.double(), 0), 0, 0.3)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-6)  # one rounding, at the end
