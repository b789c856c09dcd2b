"""What holds for every loss on any batch: random shapes, lengths and ratios in float64."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_modules.functional.masking import length_mask
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, count_batch
from lightning_modules.functional.policy_losses import LOSSES

SETTINGS = LossConfig(beta=0.1, clip_low=0.15, clip_high=0.3, delta=1.6)
SEEDS = range(8)
GLOBAL = [name for name in LOSSES if name != "bnpo"]


def settings_of(name):
    return SETTINGS if LOSSES[name].uses_delta else replace(SETTINGS, delta=None)


def limit_of(batch):
    """A max_new_tokens that no completion of the batch reaches."""
    return batch.mask.shape[1] + 3


def random_batch(seed, completions=None, *, on_policy=False):
    """float64 inputs with ratios on both sides of every bound, lengths 1 to C, no gradient yet; denominator 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = completions or int(torch.randint(1, 7, (), generator=generator))
    columns = int(torch.randint(1, 8, (), generator=generator))
    logprobs, step, drift = torch.randn(3, rows, columns, generator=generator, dtype=torch.float64).unbind()
    logprobs = -logprobs.abs()
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs if on_policy else logprobs + 0.5 * step,
        reference_logprobs=logprobs + drift,
        advantages=torch.randn(rows, generator=generator, dtype=torch.float64),
        mask=length_mask(torch.randint(1, columns + 1, (rows,), generator=generator), columns),
        denominator=1.0,
    )


def part_of(batch, rows):
    """Some completions of a batch, padded only to the longest of them."""
    columns = max(int(batch.mask[rows].sum(dim=1).max()), 1)
    return replace(
        batch,
        logprobs=batch.logprobs[rows, :columns],
        old_logprobs=batch.old_logprobs[rows, :columns],
        reference_logprobs=batch.reference_logprobs[rows, :columns],
        advantages=batch.advantages[rows],
        mask=batch.mask[rows, :columns],
    )


def normalized(name, batch, counts):
    return replace(batch, denominator=LOSSES[name].denominator(counts))


def loss_and_gradient(name, batch):
    leaf = batch.logprobs.clone().requires_grad_()
    loss = LOSSES[name](replace(batch, logprobs=leaf), settings_of(name)).loss
    loss.backward()
    return loss.detach(), leaf.grad


def whole(name, batch):
    return loss_and_gradient(name, normalized(name, batch, count_batch([batch.mask], max_new_tokens=limit_of(batch))))


def accumulated(name, batch, splits, counts):
    """Sum of losses, and the gradient put back into the shape of the batch, over micro-batches `splits` of rows."""
    total, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(batch.logprobs)
    for rows in splits:
        loss, part = loss_and_gradient(name, normalized(name, part_of(batch, rows), counts))
        total += loss
        gradient[rows, : part.shape[1]] = part
    return total, gradient


def plain_loss(name, batch, max_new_tokens):
    """The losses once more, with loops over Python numbers."""
    settings = settings_of(name)
    delta = math.inf if settings.delta is None else settings.delta
    low, high = 1 - settings.clip_low, 1 + settings.clip_high

    def surrogate(ratio, advantage):
        return min(min(ratio, delta) * advantage, min(max(ratio, low), high) * advantage)

    rows = []
    for s in range(batch.mask.shape[0]):
        length, advantage = int(batch.mask[s].sum()), batch.advantages[s].item()
        new, old, reference = (
            values[s, :length].tolist() for values in (batch.logprobs, batch.old_logprobs, batch.reference_logprobs)
        )
        mean_ratio = math.exp((sum(new) - sum(old)) / length)
        tokens = []
        for p, q, r in zip(new, old, reference, strict=True):
            gain = {
                "gspo": surrogate(mean_ratio, advantage),
                "cispo": min(max(math.exp(p - q), low), high) * advantage * p,
            }.get(name, surrogate(math.exp(p - q), advantage))
            tokens.append(-gain + settings.beta * (math.exp(r - p) - (r - p) - 1))
        rows.append(tokens)
    if name in ("grpo", "gspo"):
        return sum(sum(tokens) / len(tokens) for tokens in rows) / len(rows)
    total = sum(map(sum, rows))
    return total / (len(rows) * max_new_tokens if name == "dr_grpo" else sum(map(len, rows)))


@pytest.mark.parametrize("name", LOSSES)
def test_values_agree_with_plain_loops(name):
    for seed in SEEDS:
        batch = random_batch(seed)
        assert whole(name, batch)[0].item() == pytest.approx(plain_loss(name, batch, limit_of(batch)), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cispo"])
def test_gradients_agree_with_finite_differences(name):
    for seed in range(4):
        batch = random_batch(seed)
        assert torch.autograd.gradcheck(
            lambda logprobs, batch=batch: LOSSES[name](replace(batch, logprobs=logprobs), settings_of(name)).loss,
            batch.logprobs.clone().requires_grad_(),
        )


def test_cispo_gradient_is_the_bounded_weight_times_the_advantage():
    # Not that of its value: the weight has no gradient. d(beta k3)/dlogp = beta (1 - e^(reference - logp)).
    for seed in SEEDS:
        batch = random_batch(seed)
        weight = (batch.logprobs - batch.old_logprobs).exp().clamp(0.85, 1.3)
        penalty = 0.1 * (1 - (batch.reference_logprobs - batch.logprobs).exp())
        expected = (penalty - weight * batch.advantages[:, None]) * batch.mask / batch.mask.sum()
        torch.testing.assert_close(whole("cispo", batch)[1], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "splits", [[[i] for i in range(8)], [[0, 1, 2], [3], [4, 5, 6, 7]]], ids=["eight of 1", "3, 1 and 4"]
)
def test_micro_batches_add_up_to_the_batch(name, splits):
    for seed in SEEDS:
        batch = random_batch(seed, completions=8)
        counts = count_batch([part_of(batch, rows).mask for rows in splits], max_new_tokens=limit_of(batch))
        loss, gradient = accumulated(name, batch, splits, counts)
        expected_loss, expected_gradient = whole(name, batch)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)


def rank_counts(batch, ranks):
    """What each rank counts, given a reduction that averages over them."""
    masks = [part_of(batch, rows).mask for rows in ranks]
    own = [torch.tensor([mask.any(dim=1).sum(), mask.sum()], dtype=torch.float64) for mask in masks]
    mean = sum(own) / len(ranks)
    return [count_batch([mask], max_new_tokens=limit_of(batch), mean_over_ranks=lambda counts: mean) for mask in masks]


@pytest.mark.parametrize("name", GLOBAL)
@pytest.mark.parametrize("ranks", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1, 2], [3, 4, 5, 6, 7]]], ids=["4+4", "3+5"])
def test_ranks_average_to_the_batch(name, ranks):
    for seed in SEEDS:
        batch = random_batch(seed, completions=8)
        gradient = torch.zeros_like(batch.logprobs)
        loss = 0.0
        for rows, counts in zip(ranks, rank_counts(batch, ranks), strict=True):
            # A rank sums its own micro-batches; the data-parallel reduction divides by the number of ranks.
            rank_loss, rank_gradient = accumulated(name, batch, [[row] for row in rows], counts)
            gradient += rank_gradient / len(ranks)
            loss += rank_loss / len(ranks)
        expected_loss, expected_gradient = whole(name, batch)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)


def test_bnpo_gives_every_rank_the_same_weight():
    ranks = [[0, 1, 2, 3], [4, 5, 6, 7]]
    for seed in SEEDS:
        batch = random_batch(seed, completions=8)
        for rows, counts in zip(ranks, rank_counts(batch, ranks), strict=True):
            loss, gradient = accumulated("bnpo", batch, [[row] for row in rows], counts)
            expected_loss, expected_gradient = whole("dapo", part_of(batch, rows))
            torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(gradient[rows, : expected_gradient.shape[1]], expected_gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_completion_counts_as_if_it_were_not_there(name):
    for seed in SEEDS:
        batch = random_batch(seed, completions=5)
        kept = [0, 2, 3]
        keep = torch.tensor([row in kept for row in range(5)])
        loss, gradient = whole(name, replace(batch, mask=batch.mask & keep[:, None]))
        # The limit is that of the whole batch, since removing rows may narrow the rest.
        counts = count_batch([batch.mask[kept]], max_new_tokens=limit_of(batch))
        expected_loss, expected_gradient = loss_and_gradient(name, normalized(name, part_of(batch, kept), counts))
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient[kept, : expected_gradient.shape[1]], expected_gradient)
        assert not gradient[~keep].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_without_a_token_has_no_gradient(name):
    batch = random_batch(0, completions=3)
    loss, gradient = whole(name, replace(batch, mask=torch.zeros_like(batch.mask)))
    assert loss.item() == 0.0
    assert gradient.tolist() == torch.zeros_like(gradient).tolist()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("junk", [1e4, -1e4, math.inf, -math.inf, math.nan])
def test_padding_changes_nothing(name, junk):
    for seed in SEEDS:
        batch = random_batch(seed, completions=4)
        soiled = replace(
            batch,
            logprobs=batch.logprobs.masked_fill(~batch.mask, junk),
            old_logprobs=batch.old_logprobs.masked_fill(~batch.mask, -1.0),
            reference_logprobs=batch.reference_logprobs.masked_fill(~batch.mask, -junk),
        )
        loss, gradient = whole(name, soiled)
        expected_loss, expected_gradient = whole(name, batch)
        assert torch.equal(loss, expected_loss)
        assert torch.equal(gradient, expected_gradient)
        assert not gradient[~batch.mask].any()


def test_on_policy_the_ratios_make_no_difference():
    for seed in SEEDS:
        batch = random_batch(seed, on_policy=True)
        # dq/dlogp = 1 / length at q = 1, which is GRPO's mean; CISPO's weight is 1, and so is dr/dlogp.
        torch.testing.assert_close(whole("gspo", batch), whole("grpo", batch))
        torch.testing.assert_close(whole("cispo", batch)[1], whole("dapo", batch)[1])


def test_equal_lengths_make_grpo_a_token_mean():
    for seed in SEEDS:
        batch = random_batch(seed)
        batch = replace(batch, mask=torch.ones_like(batch.mask))
        torch.testing.assert_close(whole("grpo", batch), whole("dapo", batch))
        # Completions as long as allowed use up Dr. GRPO's budget.
        counts = count_batch([batch.mask], max_new_tokens=batch.mask.shape[1])
        torch.testing.assert_close(
            loss_and_gradient("dr_grpo", normalized("dr_grpo", batch, counts)), whole("dapo", batch)
        )


def test_counts_leave_out_masked_completions_and_padding():
    masks = [length_mask(torch.tensor(lengths), 4) for lengths in ([3, 0], [1], [4, 2])]
    counts = count_batch(masks, max_new_tokens=16)
    # Lengths 3, 1, 4 and 2; the empty row is no completion.
    assert (counts.completions, counts.tokens, counts.local_tokens, counts.max_new_tokens) == (4, 10, 10, 16)
    # Another rank with 1 completion of 5 tokens: means (4 + 1) / 2 and (10 + 5) / 2; this rank's own stay.
    counts = count_batch(masks, max_new_tokens=16, mean_over_ranks=lambda own: (own + torch.tensor([1.0, 5.0])) / 2)
    assert (counts.completions, counts.tokens, counts.local_tokens) == (2.5, 7.5, 10)
    denominators = {name: loss.denominator(counts) for name, loss in LOSSES.items()}
    assert denominators == {"grpo": 2.5, "dr_grpo": 40.0, "dapo": 7.5, "bnpo": 10, "gspo": 2.5, "cispo": 7.5}
