import math

import pytest
import torch

from lightning_modules.functional.masking import length_mask, masked_mean, masked_row_mean
from lightning_modules.functional.policy_losses import LossInputs, LossSettings, grpo_loss, k3_divergence

MASK = length_mask(torch.tensor([2, 1]), 2)


def inputs(ratios, advantages, reference=None, denominator=2.0):
    logprobs = torch.tensor(ratios).log().requires_grad_()
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=torch.zeros(2, 2),
        reference_logprobs=None if reference is None else torch.tensor(reference),
        advantages=torch.tensor(advantages),
        mask=MASK,
        denominator=denominator,
    )


def test_masks():
    assert MASK.tolist() == [[True, True], [True, False]]
    values = torch.tensor([[1.0, 3.0], [5.0, 100.0]])
    assert masked_row_mean(values, MASK).tolist() == [2.0, 5.0]
    assert masked_mean(values, MASK).item() == 3.0
    assert masked_mean(values, torch.zeros_like(MASK)).item() == 0.0


def test_k3():
    # x = ln 2: 2 - ln 2 - 1 = 0.306853.
    assert k3_divergence(torch.tensor(0.0), torch.tensor(math.log(2))).item() == pytest.approx(0.306853, abs=1e-6)
    # x is clamped at 10: e^10 - 11.
    assert k3_divergence(torch.tensor(0.0), torch.tensor(50.0)).item() == pytest.approx(math.exp(10) - 11, rel=1e-6)


def test_grpo_clips_on_the_side_the_advantage_points_to():
    # Row 0, A = 1: min(1.5, 1.2) = 1.2 and min(0.5, 0.8) = 0.5, mean 0.85. Row 1, A = -1: min(-0.5, -0.8) = -0.8.
    # Loss = (-0.85 + 0.8) / 2 = -0.025; two of three tokens are clipped.
    output = grpo_loss(inputs([[1.5, 0.5], [0.5, 9.0]], [1.0, -1.0]), LossSettings(beta=0.0))
    assert output.loss.item() == pytest.approx(-0.025, abs=1e-6)
    assert output.metrics["clip_fraction"].item() == pytest.approx(2 / 3)


def test_grpo_gradient_is_zero_where_clipped_and_on_padding():
    batch = inputs([[1.5, 0.5], [0.5, 9.0]], [1.0, -1.0])
    grpo_loss(batch, LossSettings(beta=0.0)).loss.backward()
    # Only row 0, token 1 is live: d(-r A)/dlogp = -0.5, over 2 tokens and 2 completions.
    torch.testing.assert_close(batch.logprobs.grad, torch.tensor([[0.0, -0.125], [0.0, 0.0]]))


def test_grpo_kl_penalty():
    # Ratios 1, so the surrogate is -A = 0; k3 at ln 2 is 0.306853 on every real token, weighted by beta.
    settings = LossSettings(beta=0.1)
    output = grpo_loss(inputs([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], [[math.log(2)] * 2] * 2), settings)
    assert output.loss.item() == pytest.approx(0.0306853, abs=1e-6)
    assert output.metrics["kl"].item() == pytest.approx(0.306853, abs=1e-6)


def test_the_denominator_makes_micro_batches_add_up():
    whole = grpo_loss(inputs([[1.1, 0.9], [0.8, 1.0]], [1.0, -2.0]), LossSettings(beta=0.0)).loss
    parts = []
    for row in range(2):
        batch = inputs([[1.1, 0.9], [0.8, 1.0]], [1.0, -2.0])
        part = LossInputs(
            logprobs=batch.logprobs[row : row + 1],
            old_logprobs=batch.old_logprobs[row : row + 1],
            reference_logprobs=None,
            advantages=batch.advantages[row : row + 1],
            mask=MASK[row : row + 1],
            denominator=2.0,
        )
        parts.append(grpo_loss(part, LossSettings(beta=0.0)).loss)
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("settings", [{"beta": -1.0}, {"clip_low": 0.0}, {"clip_low": 1.5}, {"clip_high": 0.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        LossSettings(**settings)
