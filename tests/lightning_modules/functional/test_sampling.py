import math

import pytest
import torch

from lightning_modules.functional.sampling import filtered_logprobs, inverse_cdf_sample

LOGITS = torch.tensor([[0.5, 0.2, 0.25, 0.05]]).log()


def probabilities(**filters):
    return filtered_logprobs(LOGITS, **{"temperature": 1.0, **filters}).exp()[0].tolist()


def test_no_filter_is_the_softmax():
    assert probabilities() == pytest.approx([0.5, 0.2, 0.25, 0.05])


def test_temperature():
    # Halving the temperature squares the probabilities: 0.25, 0.04, 0.0625, 0.0025 over 0.355.
    assert probabilities(temperature=0.5) == pytest.approx([0.25 / 0.355, 0.04 / 0.355, 0.0625 / 0.355, 0.0025 / 0.355])


def test_top_k():
    assert probabilities(top_k=2) == pytest.approx([0.5 / 0.75, 0, 0.25 / 0.75, 0])


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.4, [1, 0, 0, 0]),  # the most likely token alone reaches it
        (0.6, [0.5 / 0.75, 0, 0.25 / 0.75, 0]),
        (0.75 + 1e-3, [0.5 / 0.95, 0.2 / 0.95, 0.25 / 0.95, 0]),
        (1e-9, [1, 0, 0, 0]),  # never empty
    ],
)
def test_top_p(top_p, expected):
    assert probabilities(top_p=top_p) == pytest.approx(expected)


def test_min_p():
    # At least 0.45 * 0.5 = 0.225.
    assert probabilities(min_p=0.45) == pytest.approx([0.5 / 0.75, 0, 0.25 / 0.75, 0])


def test_filters_follow_one_another():
    # top_k 3 leaves 0.5, 0.25, 0.2 over 0.95; the first alone is 0.526, so top_p 0.55 keeps two.
    assert probabilities(top_k=3, top_p=0.55) == pytest.approx([0.5 / 0.75, 0, 0.25 / 0.75, 0])


def test_banned_tokens_stay_banned():
    logits = LOGITS.clone()
    logits[0, 0] = -torch.inf
    assert filtered_logprobs(logits, temperature=1.0).exp()[0].tolist() == pytest.approx([0, 0.4, 0.5, 0.1])


def test_inverse_cdf_takes_the_interval_that_holds_the_number():
    # Cumulative: 0.5, 0.7, 0.95, 1.
    logprobs = LOGITS.expand(6, -1)
    uniforms = torch.tensor([0.0, 0.499, 0.501, 0.699, 0.949, 0.9999], dtype=torch.float64)
    assert inverse_cdf_sample(logprobs, uniforms).tolist() == [0, 0, 1, 1, 2, 3]


def test_inverse_cdf_never_takes_an_impossible_token():
    logprobs = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf_sample(logprobs, uniforms).tolist() == [1, 1, 1]


def test_inverse_cdf_frequencies():
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = inverse_cdf_sample(LOGITS.expand(20_000, -1), uniforms)
    for token, probability in enumerate([0.5, 0.2, 0.25, 0.05]):
        deviation = math.sqrt(probability * (1 - probability) / 20_000)
        assert abs((tokens == token).double().mean().item() - probability) < 4 * deviation


def test_logprobs_that_are_no_numbers_give_a_token_of_the_vocabulary():
    logprobs = torch.tensor([[0.5, 0.5], [math.nan, math.nan]]).log()
    assert inverse_cdf_sample(logprobs, torch.tensor([0.6, 0.6], dtype=torch.float64)).tolist() == [1, 1]
