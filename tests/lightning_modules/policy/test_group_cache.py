"""The group cache against ordinary attention over a repeated, padded cache."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lightning_modules.policy.group_cache import FIRST_CAPACITY, GroupCache

B, G, P, HEADS, KV_HEADS, D = 3, 4, 7, 6, 2, 8


class Prompts:
    """Two layers of a filled prompt cache."""

    def __init__(self, generator):
        self.layers = [
            type("Layer", (), {name: torch.randn(B, KV_HEADS, P, D, generator=generator).double() for name in names})
            for names in [("keys", "values")] * 2
        ]


def expected_output(query, prompt, own, mask, rows_prompt):
    key = torch.cat([prompt.keys[rows_prompt], own[0]], dim=2)
    value = torch.cat([prompt.values[rows_prompt], own[1]], dim=2)
    allowed = torch.cat([mask[rows_prompt].bool(), torch.ones(len(query), own[0].shape[2], dtype=torch.bool)], dim=1)
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=allowed[:, None, None], scale=0.3, enable_gqa=True
    )
    return output.transpose(1, 2)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kept", [None, [0, 1, 2, 5, 11], [8, 9, 10, 11], [3]])
def test_attention_over_a_shared_prompt(padded, kept):
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(generator)
    mask = torch.ones(B, P, dtype=torch.long)
    if padded:
        mask[0, :3] = mask[2, :1] = 0
    cache = GroupCache(prompts, mask, G)
    rows_prompt = torch.arange(B).repeat_interleave(G)
    own = [(torch.empty(B * G, KV_HEADS, 0, D).double(),) * 2 for _ in range(2)]
    for step in range(FIRST_CAPACITY + 3):  # beyond the first capacity
        if step == 2 and kept is not None:
            rows = torch.tensor(kept)
            cache.keep(rows)
            rows_prompt = rows_prompt[rows]
            own = [(keys[rows], values[rows]) for keys, values in own]
        for layer, prompt in enumerate(prompts.layers):
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
    prompts = Prompts(torch.Generator().manual_seed(0))
    cache = GroupCache(prompts, torch.ones(B, P, dtype=torch.long), G)
    assert cache.prompts[0][0].shape[0] == B  # not B * G
    cache.keep(torch.tensor([8, 10]))
    assert cache.prompts[0][0].shape[0] == 1
    assert torch.equal(cache.prompts[0][0][0], prompts.layers[0].keys[2])


def test_half_precision_is_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(generator)
    exact = GroupCache(prompts, torch.ones(B, P, dtype=torch.long), G)
    for layer in prompts.layers:
        layer.keys, layer.values = layer.keys.bfloat16(), layer.values.bfloat16()
    half = GroupCache(prompts, torch.ones(B, P, dtype=torch.long), G)
    exact.prompts = [(keys.double(), values.double()) for keys, values in half.prompts]
    query, key, value = (
        torch.randn(B * G, h, 1, D, generator=generator).bfloat16() for h in (HEADS, KV_HEADS, KV_HEADS)
    )
    actual = half.attend(query, *half.update(key, value, 0), 0, 0.3)
    expected = exact.attend(query.double(), *exact.update(key.double(), value.double(), 0), 0, 0.3)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-6)  # one rounding, at the end
