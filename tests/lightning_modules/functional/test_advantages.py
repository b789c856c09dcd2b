import pytest
import torch

from lightning_modules.functional.advantages import group_relative_advantages, zero_variance

REWARDS = torch.tensor([[1.0, 0.0, 1.0, 0.0], [3.0, 1.0, 1.0, 1.0]])


def test_group_scale():
    # Row 0: mean 0.5, deviations +-0.5, variance 4 * 0.25 / 3, std 0.57735, 0.5 / 0.57745 = 0.86588. Row 1: mean 1.5,
    # deviations 1.5, -0.5 (three times), variance (2.25 + 0.75) / 3 = 1, std 1.
    expected = torch.tensor([[0.86588, -0.86588, 0.86588, -0.86588], [1.49985, -0.49995, -0.49995, -0.49995]])
    torch.testing.assert_close(group_relative_advantages(REWARDS), expected, atol=1e-5, rtol=0)


def test_batch_scale():
    # All eight: mean 1, squared deviations 0 1 0 1 4 0 0 0 sum to 6, std sqrt(6 / 7) = 0.92582.
    expected = torch.tensor([[0.5, -0.5, 0.5, -0.5], [1.5, -0.5, -0.5, -0.5]]) / (0.92582 + 1e-4)
    torch.testing.assert_close(group_relative_advantages(REWARDS, "batch"), expected, atol=1e-5, rtol=0)


def test_batch_scale_over_all_ranks():
    # With another rank's 5 and -3 (twice each): twelve rewards, sum 8 + 4 = 12, mean 1; squared deviations 6 + 16 * 4 =
    # 70, std sqrt(70 / 11) = 2.52262. Means stay those of the groups.
    other = torch.tensor([[5.0, -3.0], [5.0, -3.0]])
    gathered = torch.cat([REWARDS.flatten(), other.flatten()])
    expected = torch.tensor([[0.5, -0.5, 0.5, -0.5], [1.5, -0.5, -0.5, -0.5]]) / (2.52262 + 1e-4)
    actual = group_relative_advantages(REWARDS, "batch", all_rewards=gathered)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_ranks_scale_as_one_batch():
    whole = group_relative_advantages(REWARDS, "batch")
    ranks = [group_relative_advantages(REWARDS[rank : rank + 1], "batch", all_rewards=REWARDS) for rank in range(2)]
    torch.testing.assert_close(torch.cat(ranks), whole, rtol=0, atol=0)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_scales_of_one_group_do_not_look_at_other_ranks(scale):
    actual = group_relative_advantages(REWARDS, scale, all_rewards=torch.tensor([100.0, -100.0]))
    torch.testing.assert_close(actual, group_relative_advantages(REWARDS, scale), rtol=0, atol=0)


def test_no_scale():
    expected = torch.tensor([[0.5, -0.5, 0.5, -0.5], [1.5, -0.5, -0.5, -0.5]])
    torch.testing.assert_close(group_relative_advantages(REWARDS, "none"), expected)


def test_equal_rewards_give_zero_and_are_counted():
    rewards = torch.tensor([[2.0, 2.0], [2.0, 1.0]])
    assert group_relative_advantages(rewards)[0].tolist() == [0.0, 0.0]
    assert zero_variance(rewards).tolist() == [True, False]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_zero_whatever_rounding_does_to_their_mean(scale):
    # The float32 mean of seven times 0.1 is not 0.1, and the group's std is of the same size as the difference.
    rewards = (torch.arange(1, 1001) / 1000).repeat_interleave(7).view(1000, 7)
    assert (rewards.mean(dim=1) != rewards[:, 0]).sum() > 100
    assert torch.equal(group_relative_advantages(rewards, scale), torch.zeros(1000, 7))


def test_a_reward_that_is_not_a_number_is_no_zero_variance():
    rewards = torch.tensor([[float("nan"), float("nan")], [1.0, 1.0]])
    assert zero_variance(rewards).tolist() == [False, True]
    assert group_relative_advantages(rewards)[0].isnan().all()


def test_one_completion_per_group_is_refused():
    with pytest.raises(ValueError, match="G >= 2"):
        group_relative_advantages(torch.ones(3, 1))


def test_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="'grop'; allowed are 'group', 'batch', 'none'"):
        group_relative_advantages(REWARDS, "grop")
