"""Values and gradients derived by hand. What holds for any batch is in test_policy_loss_properties.py."""

import math

import pytest
import torch

from lightning_modules.functional.masking import length_mask, masked_mean, masked_row_mean
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, count_batch
from lightning_modules.functional.policy_losses import LOSSES, find_loss, k3_divergence

MASK = length_mask(torch.tensor([2, 1]), 2)
MAX_NEW_TOKENS = 4
RATIOS = [[1.5, 0.5], [0.5, 9.0]]  # the 9 is padding
ADVANTAGES = [1.0, -1.0]


def run(name, ratios, advantages, reference=None, mask=MASK, **settings):
    """(output, gradient of the log-probabilities); the old policy's are 0, so log-probabilities are log-ratios."""
    logprobs = torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=torch.zeros_like(logprobs),
        reference_logprobs=None if reference is None else torch.full_like(logprobs, reference).detach(),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        mask=mask,
        denominator=LOSSES[name].denominator(count_batch([mask], max_new_tokens=MAX_NEW_TOKENS)),
    )
    output = LOSSES[name](inputs, LossConfig(**{"beta": 0.0, **settings}))
    output.loss.backward()
    return output, logprobs.grad


def run_token(name, ratio, advantage, **settings):
    """(loss, gradient) of one completion of one token; its denominator is 1 for all losses but dr_grpo."""
    output, gradient = run(name, [[ratio]], [advantage], mask=torch.tensor([[True]]), **settings)
    return output.loss.item(), gradient.item()


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


def kl_gradient(log_ratio, beyond_clamp):
    """Value and d/dlogp of k3 at x = log ref - log policy."""
    logprob = torch.tensor(-log_ratio, dtype=torch.float64, requires_grad=True)
    value = k3_divergence(logprob, torch.zeros((), dtype=torch.float64), 10.0, beyond_clamp)
    value.backward()
    return value.item(), logprob.grad.item()


@pytest.mark.parametrize(
    ("log_ratio", "value", "gradient"),
    [
        # k(-10) = e^-10 + 9, k'(-10) = e^-10 - 1; two nats further, and d/dlogp = -k'.
        (-12.0, math.exp(-10) + 9 + 2 * (1 - math.exp(-10)), 1 - math.exp(-10)),
        # k(10) = e^10 - 11, k'(10) = e^10 - 1; half a nat further.
        (10.5, math.exp(10) - 11 + 0.5 * (math.exp(10) - 1), 1 - math.exp(10)),
    ],
)
def test_the_penalty_beyond_the_clamp_is_flat_or_its_tangent(log_ratio, value, gradient):
    bound = math.copysign(10, log_ratio)
    assert kl_gradient(log_ratio, "constant") == (pytest.approx(math.exp(bound) - bound - 1), 0.0)
    assert kl_gradient(log_ratio, "linear") == (pytest.approx(value), pytest.approx(gradient))


@pytest.mark.parametrize("log_ratio", [-9.0, 0.3, 9.0])
def test_the_penalty_within_the_clamp_is_the_same(log_ratio):
    expected = math.exp(log_ratio) - log_ratio - 1, 1 - math.exp(log_ratio)
    assert kl_gradient(log_ratio, "linear") == kl_gradient(log_ratio, "constant") == pytest.approx(expected)


def test_the_losses_draw_back_what_drifted_only_with_a_linear_penalty():
    ratio = [[math.exp(12.0)]]  # log-probability 12 above the reference's 0, so x = -12
    options = {"reference": 0.0, "mask": torch.tensor([[True]]), "beta": 0.5}
    flat, flat_gradient = run("grpo", ratio, [0.0], **options)
    linear, linear_gradient = run("grpo", ratio, [0.0], kl_beyond_clamp="linear", **options)
    assert flat_gradient.item() == 0.0
    assert linear_gradient.item() == pytest.approx(0.5 * (1 - math.exp(-10)))
    assert flat.metrics["kl_clamped"].item() == linear.metrics["kl_clamped"].item() == 1.0


def test_the_losses_there_are():
    assert list(LOSSES) == ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"]


# Objective per token with clip 0.2 and 0.2. Row 0, A = 1: min(1.5, 1.2) = 1.2 and min(0.5, 0.8) = 0.5. Row 1, A = -1:
# min(-0.5, -0.8) = -0.8. Only the second token is unclipped, d(-r A)/dlogp = -0.5; there are 3 tokens, 2 completions.
@pytest.mark.parametrize(
    ("name", "loss", "gradient"),
    [
        # Row means 0.85 and -0.8: -(0.85 - 0.8) / 2. Gradient -0.5 / 2 tokens / 2 completions.
        ("grpo", -0.025, [[0.0, -0.125], [0.0, 0.0]]),
        # -(1.2 + 0.5 - 0.8) / (2 completions * 4 tokens allowed) = -0.9 / 8. Gradient -0.5 / 8.
        ("dr_grpo", -0.1125, [[0.0, -0.0625], [0.0, 0.0]]),
        # -0.9 / 3 tokens. Gradient -0.5 / 3.
        ("dapo", -0.3, [[0.0, -0.5 / 3], [0.0, 0.0]]),
        # With one rank the local tokens are all tokens.
        ("bnpo", -0.3, [[0.0, -0.5 / 3], [0.0, 0.0]]),
        # Row 0: q = sqrt(1.5 * 0.5) = 0.866025, inside. Row 1: q = 0.5, min(-0.5, -0.8) = -0.8.
        # -(0.866025 - 0.8) / 2; dq/dlogp = q / 2 on both tokens of row 0, over 2 completions: -0.866025 / 4.
        ("gspo", -0.0330127, [[-0.2165064, -0.2165064], [0.0, 0.0]]),
        # Weights 1.2, 0.8 and 0.8: -(1.2 ln 1.5 + 0.8 ln 0.5 - 0.8 ln 0.5) / 3 = -1.2 * 0.405465 / 3.
        # Gradient -w A / 3 on every token.
        ("cispo", -0.1621860, [[-0.4, -0.8 / 3], [0.8 / 3, 0.0]]),
    ],
)
def test_value_and_gradient(name, loss, gradient):
    output, actual = run(name, RATIOS, ADVANTAGES)
    assert output.loss.item() == pytest.approx(loss, abs=1e-7)
    torch.testing.assert_close(actual, torch.tensor(gradient, dtype=torch.float64), atol=1e-7, rtol=0)


# Advantages 0, so only the penalty is left: k3 at x = ln 2 is 0.306853 on each of 3 tokens, times beta 0.1.
# dk3/dlogp = 1 - e^x = -1, so each token adds -0.1 to the gradient before the mean.
@pytest.mark.parametrize(
    ("name", "loss", "gradient"),
    [
        ("grpo", 0.0306853, [[-0.025, -0.025], [-0.05, 0.0]]),
        ("dr_grpo", 3 * 0.0306853 / 8, [[-0.0125, -0.0125], [-0.0125, 0.0]]),
        ("dapo", 0.0306853, [[-0.1 / 3, -0.1 / 3], [-0.1 / 3, 0.0]]),
        ("bnpo", 0.0306853, [[-0.1 / 3, -0.1 / 3], [-0.1 / 3, 0.0]]),
        ("gspo", 0.0306853, [[-0.025, -0.025], [-0.05, 0.0]]),
        ("cispo", 0.0306853, [[-0.1 / 3, -0.1 / 3], [-0.1 / 3, 0.0]]),
    ],
)
def test_the_kl_penalty_is_averaged_like_the_objective(name, loss, gradient):
    output, actual = run(name, [[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], reference=math.log(2), beta=0.1)
    assert output.loss.item() == pytest.approx(loss, abs=1e-7)
    torch.testing.assert_close(actual, torch.tensor(gradient, dtype=torch.float64), atol=1e-12, rtol=0)
    assert output.metrics["kl"].item() == pytest.approx(0.306853, abs=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dapo", "bnpo", "gspo"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.45, 1.0, -1.4, 0.0),  # above 1 + 0.4, A > 0: min(1.45, 1.4)
        (1.35, 1.0, -1.35, -1.35),  # inside
        (0.85, 1.0, -0.85, -0.85),  # below 1 - 0.1, but A > 0 pulls it back: min(0.85, 0.9)
        (0.85, -1.0, 0.9, 0.0),  # below 1 - 0.1, A < 0: min(-0.85, -0.9)
        (1.45, -1.0, 1.45, 1.45),  # above, but A < 0 pulls it back: min(-1.45, -1.4)
    ],
)
def test_clipping_takes_the_gradient_on_one_side_of_each_bound(name, ratio, advantage, loss, gradient):
    actual = run_token(name, ratio, advantage, clip_low=0.1, clip_high=0.4)
    assert actual == pytest.approx((loss, gradient), abs=1e-12)


@pytest.mark.parametrize(("ratio", "weight"), [(1.45, 1.4), (1.35, 1.35), (0.85, 0.9)])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_cispo_keeps_the_gradient_of_a_clipped_token(ratio, weight, advantage):
    loss, gradient = run_token("cispo", ratio, advantage, clip_low=0.1, clip_high=0.4)
    assert gradient == pytest.approx(-weight * advantage, abs=1e-12)
    assert loss == pytest.approx(-weight * advantage * math.log(ratio), abs=1e-12)


def test_clip_low_1_lifts_the_lower_bound():
    # Weight 0.01, not 1 - 0.2.
    assert run_token("cispo", 0.01, 1.0, clip_low=1.0)[1] == pytest.approx(-0.01, abs=1e-12)


@pytest.mark.parametrize("name", ["grpo", "dapo", "bnpo", "gspo"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "delta", "loss", "gradient"),
    [
        (4.0, -1.0, None, 4.0, 4.0),  # min(-4, -1.2): no bound
        (4.0, -1.0, 2.0, 2.0, 0.0),  # min(-2, -1.2), beyond delta
        (1.5, -1.0, 2.0, 1.5, 1.5),  # below delta
        (4.0, 1.0, 2.0, -1.2, 0.0),  # clip_high comes first
    ],
)
def test_delta_bounds_the_ratio_of_negative_advantages(name, ratio, advantage, delta, loss, gradient):
    assert run_token(name, ratio, advantage, delta=delta) == pytest.approx((loss, gradient), abs=1e-12)


def test_clip_fraction_counts_tokens_without_gradient():
    # Tokens 1 and 3 of three, see test_value_and_gradient; the mean ratio is (1.5 + 0.5 + 0.5) / 3.
    output, _ = run("dapo", RATIOS, ADVANTAGES)
    assert output.metrics["clip_fraction"].item() == pytest.approx(2 / 3)
    assert output.metrics["ratio"].item() == pytest.approx(2.5 / 3)
    assert "kl" not in output.metrics
    # GSPO clips the second completion of two, however many tokens they have; their ratios are 0.866025 and 0.5.
    output, _ = run("gspo", RATIOS, ADVANTAGES)
    assert output.metrics["clip_fraction"].item() == pytest.approx(1 / 2)
    assert output.metrics["ratio"].item() == pytest.approx((0.866025 + 0.5) / 2, abs=1e-6)
    # A completion that is left out is none of those that count.
    output, _ = run("gspo", RATIOS, ADVANTAGES, mask=torch.tensor([[True, True], [False, False]]))
    assert output.metrics["clip_fraction"].item() == 0 and output.metrics["clip_fraction"].weight.item() == 1
    # CISPO bounds the weight of all three.
    assert run("cispo", RATIOS, ADVANTAGES)[0].metrics["clip_fraction"].item() == 1.0
    # Beyond delta the gradient is gone as well.
    bounded, _ = run("dapo", [[4.0, 1.0], [1.0, 1.0]], [-1.0, 1.0], delta=2.0)
    assert bounded.metrics["clip_fraction"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": -1.0},
        {"beta": math.nan},
        {"clip_low": 0.0},
        {"clip_low": 1.5},
        {"clip_high": 0.0},
        {"delta": 1.2},
        {"delta": 1.25, "clip_high": 0.28},
        {"kl_log_clamp": 0.0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        LossConfig(**settings)


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="'ppo'; allowed are 'grpo', 'dr_grpo', 'dapo', 'bnpo', 'gspo', 'cispo'"):
        find_loss("ppo", LossConfig())


def test_delta_is_refused_where_it_would_do_nothing():
    settings = LossConfig(delta=2.0)
    with pytest.raises(ValueError, match=r"'cispo' and model\.loss_config\.delta is 2\.0"):
        find_loss("cispo", settings)
    assert find_loss("dapo", settings) is LOSSES["dapo"]
    assert find_loss("cispo", LossConfig()) is LOSSES["cispo"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_penalty_without_a_reference_is_our_own_bug(name):
    with pytest.raises(AssertionError, match="without a reference"):
        run(name, RATIOS, ADVANTAGES, beta=0.1)


def test_a_shape_that_would_broadcast_is_our_own_bug():
    values = torch.zeros(2, 2)
    with pytest.raises(AssertionError, match="one advantage per completion"):
        LossInputs(
            logprobs=values,
            old_logprobs=values,
            reference_logprobs=None,
            advantages=torch.zeros(2, 1),
            mask=MASK,
            denominator=1.0,
        )
