import pytest
import torch

from lightning_modules.functional.policy_loss_types import LossConfig
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.qwen_vl import QwenVLFamily
from lightning_modules.rollouts.transformers_engine import TransformersEngine
from lightning_modules.rollouts.types import SamplingConfig
from lightning_modules.training.update import PolicyUpdate
from rewards import AccuracyReward, FormatReward
from rewards.suite import SuiteConfig
from rewards.temporal import TemporalReward
from tests.lightning_modules.module_runs import LetterReward, data_module, grpo_module, scalars, trainer

NO_REFERENCE = LossConfig(beta=0.0)


def run(folder, model, data, *, steps=3, data_options=None, **options):
    module = grpo_module(model, **options)
    loader = data_module(model, data, train_format="prompts", **(data_options or {}))
    trainer(folder, max_steps=steps, limit_val_batches=0).fit(module, loader)
    return module, scalars(folder)


def test_a_run_logs_what_people_watch(tiny_folder, mixed_data, tmp_path):
    module, logged = run(tmp_path, tiny_folder, mixed_data)
    expected = {
        "train/loss", "train/lr", "train/grad_norm", "train/reward/mean", "train/reward/std",
        "train/reward/letter/mean", "train/reward/letter/std", "train/contribution/letter", "seconds/reward/letter",
        "train/reward/format/mean",
        "train/reward/accuracy/mean", "train/advantage/mean", "train/advantage/std", "train/zero_variance_groups",
        "train/completion_tokens/mean", "train/truncated", "train/kl", "train/entropy", "train/clip_fraction",
        "train/logprob_difference/mean", "train/logprob_difference/max", "train/tokens_per_second",
        "seconds/data", "seconds/rollout", "seconds/reward", "seconds/update", "seconds/step",
    }  # fmt: skip
    assert expected <= logged.keys()
    assert all(len(logged[tag]) == 3 for tag in expected - {"seconds/data"})
    assert module.last_rollouts.advantages.shape == (4, 4)


def test_sampler_and_trainer_agree_before_the_first_update(tiny_folder, mixed_data, tmp_path):
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=1)
    assert 0 < logged["train/logprob_difference/max"][0] < 1e-4


def test_they_still_agree_after_updates(tiny_folder, mixed_data, tmp_path):
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=5)
    assert max(logged["train/logprob_difference/max"]) < 1e-4


def test_training_raises_the_reward(tiny_folder, mixed_data, tmp_path):
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=25, loss_config=NO_REFERENCE, group_size=8)
    rewards = logged["train/reward/letter/mean"]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])


def test_kl_starts_at_zero_and_grows(tiny_folder, mixed_data, tmp_path):
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=4)
    assert logged["train/kl"][0] == pytest.approx(0, abs=1e-7)
    assert logged["train/kl"][-1] > 1e-5


def parameters(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.policy.parameters()])


def assert_same_trajectory(actual, expected):
    for tag in ("train/loss", "train/grad_norm", "train/kl", "train/entropy", "train/reward/mean"):
        assert actual[tag] == pytest.approx(expected[tag], rel=1e-4, abs=1e-6), tag


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_give_the_same_trajectory(tiny_folder, mixed_data, tmp_path, size):
    _, whole = run(tmp_path / "whole", tiny_folder, mixed_data)
    _, split = run(tmp_path / "split", tiny_folder, mixed_data, micro_batch_groups=size)
    assert_same_trajectory(split, whole)


def test_gradient_checkpointing_gives_the_same_trajectory(tiny_folder, mixed_data, tmp_path):
    _, plain = run(tmp_path / "plain", tiny_folder, mixed_data)
    _, recomputed = run(tmp_path / "recomputed", tiny_folder, mixed_data, gradient_checkpointing=True)
    assert_same_trajectory(recomputed, plain)


def test_repeating_the_prompt_gives_the_same_trajectory(tiny_folder, mixed_data, tmp_path, monkeypatch):
    _, shared = run(tmp_path / "shared", tiny_folder, mixed_data)
    pack = Policy.pack

    def pack_every_completion_with_its_own_prompt(self, batch, completions, **options):
        if not any(completions):  # prompts that are to be continued
            return pack(self, batch, completions, **options)
        pairs = [(row, [completion]) for row, members in enumerate(completions) for completion in members]
        rows, single = zip(*pairs, strict=True)
        return pack(self, batch.select(rows), single, **options)

    monkeypatch.setattr(Policy, "pack", pack_every_completion_with_its_own_prompt)
    _, repeated = run(tmp_path / "repeated", tiny_folder, mixed_data)
    assert_same_trajectory(repeated, shared)


def test_inner_epochs_take_more_steps_on_each_rollout(tiny_folder, mixed_data, tmp_path):
    module, logged = run(tmp_path, tiny_folder, mixed_data, steps=4, inner_epochs=2, loss_config=NO_REFERENCE)
    assert module.trainer.global_step == 4
    assert len(logged["train/loss"]) == 2  # two rollouts


def test_the_reference_stays_out_of_checkpoints_and_frozen(tiny_folder, mixed_data, tmp_path):
    module, _ = run(tmp_path, tiny_folder, mixed_data)
    path = tmp_path / "module.ckpt"
    module.trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert {name.partition(".")[0] for name in checkpoint["state_dict"]} == {"policy"}
    assert "reference" not in checkpoint
    fresh = grpo_module(tiny_folder)
    fresh.configure_model()
    initial = fresh.policy.state_dict()
    for name, weight in module.reference.weights().items():
        assert torch.equal(weight, initial[name]), name
    fresh.load_state_dict(checkpoint["state_dict"])  # strict
    torch.testing.assert_close(parameters(fresh), parameters(module), rtol=0, atol=0)


def test_no_reference_is_loaded_without_a_penalty(tiny_folder):
    module = grpo_module(tiny_folder, loss_config=NO_REFERENCE)
    module.configure_model()
    assert module.reference is None


def test_the_same_seed_gives_the_same_run(tiny_folder, mixed_data, tmp_path):
    _, first = run(tmp_path / "first", tiny_folder, mixed_data)
    _, second = run(tmp_path / "second", tiny_folder, mixed_data)
    _, other = run(tmp_path / "other", tiny_folder, mixed_data, seed=1)
    assert first["train/loss"] == second["train/loss"]
    assert first["train/reward/mean"] == second["train/reward/mean"]
    assert first["train/reward/mean"] != other["train/reward/mean"]


def test_fine_tuning_batches_are_refused(tiny_folder, mixed_data, tmp_path):
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    with pytest.raises(ValueError, match="train_format: prompts"):
        trainer(tmp_path, max_steps=1).fit(grpo_module(tiny_folder), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "group_size is 1.*>= 2"),
        ({"loss": "grop"}, "'grop'; allowed are 'grpo', 'dr_grpo'"),
        ({"inner_epochs": 0}, "inner_epochs is 0"),
        ({"micro_batch_groups": 0}, "micro_batch_groups is 0"),
        ({"max_resamples": -1}, "max_resamples is -1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
        ({"rewards": [AccuracyReward(gate="semantic")]}, "semantic"),
        ({"rewards": []}, "at least one reward|no rewards|empty"),
    ],
)
def test_impossible_settings_are_refused_at_construction(tiny_folder, options, message):
    with pytest.raises(ValueError, match=message):
        grpo_module(tiny_folder, **options)


def test_sampling_settings_reach_the_sampler(tiny_folder, mixed_data, tmp_path):
    sampling = SamplingConfig(max_new_tokens=3)
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=1, sampling=sampling)
    assert logged["train/completion_tokens/max"][0] <= 3


FROZEN = ["vision_tower", "merger"]


def tower_calls(module):
    """Counts forward passes of the policy's and the reference's vision towers."""
    calls = {"policy": 0, "reference": 0}
    for name, policy in (("policy", module.policy), ("reference", module.reference.policy)):

        def count(*_, name=name):
            calls[name] += 1

        policy.model.model.visual.register_forward_hook(count)
    return calls


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (FROZEN, {"policy": 1, "reference": 0}),  # one call serves sampling, policy and reference
        (None, {"policy": 2, "reference": 1}),  # without gradient to sample, with gradient to train
    ],
)
def test_the_video_is_encoded_once_per_step(tiny_folder, mixed_data, tmp_path, freeze, expected):
    module = grpo_module(tiny_folder, freeze=freeze)
    module.configure_model()
    calls = tower_calls(module)
    data = data_module(tiny_folder, mixed_data, train_format="prompts")
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data)
    assert calls == expected


def test_positions_and_loss_masks_are_made_once_per_step(tiny_folder, mixed_data, tmp_path, monkeypatch):
    calls = {"positions": 0, "loss masks": 0}

    def counted(name, function):
        def wrapper(*arguments):
            calls[name] += 1
            return function(*arguments)

        return wrapper

    monkeypatch.setattr(QwenVLFamily, "positions", counted("positions", QwenVLFamily.positions))
    monkeypatch.setattr(PolicyUpdate, "_loss_mask", counted("loss masks", PolicyUpdate._loss_mask))
    options = {
        "rewards": [EvenReward(), AccuracyReward(), TemporalReward()],
        "max_resamples": 1,
        "micro_batch_groups": 1,
    }
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=2, inner_epochs=2, **options)
    assert len(logged["train/loss"]) == 1 and logged["train/redrawn_groups"][0] > 0  # one rollout for two steps
    assert calls == {"positions": 1, "loss masks": 4}  # of one batch of four groups


def test_shared_features_change_nothing(tiny_folder, mixed_data, tmp_path, monkeypatch):
    options = {"freeze": FROZEN, "micro_batch_groups": 3}
    _, logged_shared = run(tmp_path / "shared", tiny_folder, mixed_data, **options)
    monkeypatch.setattr(Policy, "with_frozen_features", lambda self, batch: batch)
    _, logged_own = run(tmp_path / "own", tiny_folder, mixed_data, **options)
    assert logged_shared["train/loss"] == pytest.approx(logged_own["train/loss"], rel=1e-4, abs=1e-6)
    assert logged_shared["train/grad_norm"] == pytest.approx(logged_own["train/grad_norm"], rel=1e-4)


def test_frozen_parts_stay_as_they_were(tiny_folder, mixed_data, tmp_path):
    module, _ = run(tmp_path, tiny_folder, mixed_data, freeze=FROZEN)
    fresh = grpo_module(tiny_folder)
    fresh.configure_model()
    initial = dict(fresh.policy.named_parameters())
    changed = {name for name, weight in module.policy.named_parameters() if not torch.equal(weight, initial[name])}
    assert changed and not any(".visual." in name for name in changed)


class EvenReward(LetterReward):
    """Tells the completions of half of the records apart, and of the others not."""

    def score(self, group, raw):
        scores = super().score(group, raw)
        return scores if int(group.record_id) % 2 else [1.0] * len(scores)


def test_groups_without_variance_are_skipped_but_counted(tiny_folder, mixed_data, tmp_path, monkeypatch):
    options = {"rewards": [EvenReward()], "loss_config": NO_REFERENCE, "dtype": "float64"}
    _, logged = run(tmp_path / "skipping", tiny_folder, mixed_data, **options)
    assert 0 < logged["train/zero_variance_groups"][0] < 1
    packed = []
    pack = Policy.pack
    monkeypatch.setattr(
        Policy,
        "pack",
        lambda self, batch, completions, **options: (
            packed.append(len(batch)) or pack(self, batch, completions, **options)
        ),
    )
    # A penalty too small to matter forbids the skipping.
    options["loss_config"] = LossConfig(beta=1e-12)
    _, logged_all = run(tmp_path / "all", tiny_folder, mixed_data, **options)
    assert set(packed) == {4}
    assert logged["train/grad_norm"] == pytest.approx(logged_all["train/grad_norm"], rel=1e-4)
    assert logged["train/loss"] == pytest.approx(logged_all["train/loss"], rel=1e-4, abs=1e-9)


def test_a_batch_without_any_variance_still_takes_its_step(tiny_folder, mixed_data, tmp_path):
    options = {"rewards": [FormatReward()], "loss_config": NO_REFERENCE}  # an untrained model never earns it
    module, logged = run(tmp_path, tiny_folder, mixed_data, **options)
    assert logged["train/zero_variance_groups"] == [1.0] * 3
    assert logged["train/grad_norm"] == [0.0] * 3
    assert module.trainer.global_step == 3


def test_groups_without_variance_are_drawn_again(tiny_folder, mixed_data, tmp_path):
    options = {"rewards": [EvenReward()], "max_resamples": 2, "loss_config": NO_REFERENCE}
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=1, **options)
    stale = logged["train/zero_variance_groups"][0] * 4  # this reward never learns to differ on them
    assert logged["train/redrawn_groups"][0] == 2 * stale > 0


class LaterReward(LetterReward):
    """Tells the completions of a group apart only after all four groups were scored once."""

    def __init__(self):
        super().__init__()
        self.scored = 0

    def score(self, group, raw):
        self.scored += 1
        return [1.0] * 4 if self.scored <= 4 else [2.0, 4.0, 6.0, 8.0]


def test_the_logged_reward_is_that_before_redrawing(tiny_folder, mixed_data, tmp_path):
    options = {"rewards": [LaterReward()], "max_resamples": 2, "loss_config": NO_REFERENCE}
    module, logged = run(tmp_path, tiny_folder, mixed_data, steps=1, **options)
    expected = {"train/reward/mean": 1, "train/reward/letter/mean": 1, "train/reward/std": 0}
    expected |= {"train/zero_variance_groups": 1, "train/redrawn_groups": 4}
    # Mean of 2, 4, 6 and 8.
    expected |= {"train/reward/mean_after_redraws": 5, "train/zero_variance_groups_after_redraws": 0}
    assert {tag: logged[tag] for tag in expected} == {tag: [value] for tag, value in expected.items()}
    assert module.last_rollouts.breakdown.total.mean() == 5  # what is trained on


def test_truncated_completions_can_be_left_out(tiny_folder, mixed_data, tmp_path):
    options = {"sampling": SamplingConfig(max_new_tokens=3), "loss_config": NO_REFERENCE, "mask_truncated": True}
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=1, **options)
    assert logged["train/truncated"][0] > 0.9
    _, all_logged = run(tmp_path / "all", tiny_folder, mixed_data, steps=1, **{**options, "mask_truncated": False})
    assert logged["train/grad_norm"][0] != pytest.approx(all_logged["train/grad_norm"][0], rel=1e-2)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_every_loss_gives_one_trajectory_whatever_the_micro_batches(tiny_folder, mixed_data, tmp_path, loss, scale):
    options = {"loss": loss, "advantage_scale": scale, "inner_epochs": 2, "steps": 4}
    _, whole = run(tmp_path / "whole", tiny_folder, mixed_data, **options)
    _, split = run(tmp_path / "split", tiny_folder, mixed_data, micro_batch_groups=1, **options)
    assert_same_trajectory(split, whole)


def test_shuffled_frames_are_sampled_for_videos_where_a_reward_asks(tiny_folder, mixed_data, tmp_path, monkeypatch):
    calls, generate = [], TransformersEngine.generate

    def recorded(self, batch, config, *, group_size, seeds):
        calls.append((group_size, [prompt.record.data_type for prompt in batch.prompts]))
        return generate(self, batch, config, group_size=group_size, seeds=seeds)

    monkeypatch.setattr(TransformersEngine, "generate", recorded)
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=1, rewards=[AccuracyReward(), TemporalReward()])
    (ordered_size, kinds), (shuffled_size, shuffled_kinds) = calls
    assert (ordered_size, shuffled_size) == (4, 2)
    assert shuffled_kinds == ["video"] * kinds.count("video") and len(shuffled_kinds) < len(kinds)
    assert "train/reward/temporal/mean" in logged


def test_suite_config_reach_the_suite(tiny_folder, mixed_data, tmp_path):
    suite = SuiteConfig(truncation="zero")
    options = {"sampling": SamplingConfig(max_new_tokens=3), "suite": suite, "loss_config": NO_REFERENCE}
    _, logged = run(tmp_path, tiny_folder, mixed_data, steps=1, **options)
    assert logged["train/truncated"][0] == 1.0
    assert logged["train/reward/mean"] == [0.0]
