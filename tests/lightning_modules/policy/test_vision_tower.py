"""The faster tower against the stock one."""

import copy

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from lightning_modules.policy.vision_tower import accelerate, segment_indices

GRIDS = {
    "one frame size": [[4, 4, 6]],
    "windows cut off at the edges": [[2, 10, 14]],
    "videos and images": [[3, 4, 4], [1, 10, 6], [1, 2, 2], [2, 8, 8]],
}


def qwen2_5_tower():
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 24,
            "window_size": 112, "fullatt_block_indexes": [1],
        }
    ).vision_config  # fmt: skip
    return Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa")


def qwen2_tower():
    config = Qwen2VLConfig(vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 24, "num_heads": 2}).vision_config
    return Qwen2VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa")


def outcome(tower, pixels, grid, **options):
    tower.zero_grad()
    features = tower(pixels, grid_thw=grid, **options).pooler_output
    (features * torch.arange(features.numel(), dtype=features.dtype).view_as(features).cos()).sum().backward()
    return features.detach(), {name: parameter.grad.clone() for name, parameter in tower.named_parameters()}


@pytest.mark.parametrize("build", [qwen2_5_tower, qwen2_tower])
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
def test_features_and_gradients_are_those_of_the_stock_tower(build, grids):
    torch.manual_seed(0)
    stock = build().double()
    fast = copy.deepcopy(stock)
    accelerate(fast)
    assert [type(a) is not type(b) for a, b in zip(stock.modules(), fast.modules(), strict=True)].count(True) >= 3
    assert stock.state_dict().keys() == fast.state_dict().keys()

    grid = torch.tensor(grids)
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 14 * 14, dtype=torch.float64)
    expected, expected_gradients = outcome(stock, pixels, grid)
    actual, gradients = outcome(fast, pixels, grid, segment_indices=segment_indices(grids, fast, pixels.device))
    # The rotation computes in float32 in both.
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-8, msg=name)


def test_without_a_plan_the_layers_do_what_they_did():
    torch.manual_seed(0)
    tower = qwen2_5_tower()
    pixels, grid = torch.randn(24, 1176), torch.tensor([[1, 4, 6]])
    expected = tower(pixels, grid_thw=grid).pooler_output
    accelerate(tower)
    torch.testing.assert_close(tower(pixels, grid_thw=grid).pooler_output, expected, rtol=1e-5, atol=1e-6)


def test_plans_sort_segments_by_length():
    # Side 112 / 2 / 14 = 4 merged patches; 5 x 7 merged patches give windows 4x4, 4x3, 1x4, 1x3, 4 patches to a token.
    full, windowed = segment_indices([[1, 10, 14]], qwen2_5_tower(), torch.device("cpu"))
    assert full.shapes == ((1, 140),) and full.gather is None
    assert windowed.segments == 4
    assert windowed.shapes == ((1, 12), (1, 16), (1, 48), (1, 64))
    assert windowed.gather[windowed.scatter].tolist() == list(range(140))
