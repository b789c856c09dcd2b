"""A group in slices against the packed row: the same numbers and the same gradients."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from lightning_modules.functional.policy_loss_types import LossConfig
from lightning_modules.functional.policy_losses import LOSSES
from lightning_modules.policy.reference import ReferencePolicy
from lightning_modules.rollouts.types import Completion, RolloutGroup
from lightning_modules.training.step_metrics import StepMetrics
from lightning_modules.training.update import PolicyUpdate
from tests.lightning_modules.policy.test_shared_prefix import relative_error

LENGTHS = [[1, 4, 17, 9], [6, 6, 6, 6], [2, 30, 1, 3], [1, 1, 1, 2]]
LANGUAGE, TOWER = 1e-9, 1e-7
"""Relative errors; the rotation inside the vision tower is float32."""


def rollout(prompts, vocabulary):
    generator = torch.Generator().manual_seed(0)

    def completion(length):
        return Completion(
            token_ids=torch.randint(20, vocabulary, (length,), generator=generator),
            text="",
            sampling_logprobs=torch.zeros(length),
            policy_logprobs=torch.randn(length, generator=generator),
            truncated=False,
        )

    return [
        RolloutGroup(prompt=prompt, completions=tuple(completion(length) for length in lengths))
        for prompt, lengths in zip(prompts, LENGTHS, strict=True)
    ]


def run(policy, prompts, size, *, loss="grpo", reference=None, epochs=1, groups=None):
    """Gradients and metrics of an update with slices of so many completions."""
    update = PolicyUpdate(
        policy,
        reference,
        loss=LOSSES[loss],
        config=LossConfig(beta=0.04 if reference is not None else 0.0),
        temperature=0.9,
        max_new_tokens=32,
        micro_batch_groups=groups,
        micro_batch_completions=size,
    )
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(len(prompts), 4, generator=generator, dtype=torch.float64)
    micro_batches = update.prepare(
        policy.with_frozen_features(policy.collate(prompts)),
        rollout(prompts, 384),
        advantages,
        mean_over_ranks=lambda counts: counts,
        max_over_ranks=lambda count: count,
    )
    for epoch in range(epochs):
        if epoch:  # away from the old log-probabilities
            noise = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter += 1e-3 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
        policy.zero_grad(set_to_none=True)
        metrics, total = StepMetrics(), 0.0
        for micro in micro_batches:
            passes = 0
            for part in update.losses(micro, metrics):
                part.backward()
                total, passes = total + part.item(), passes + 1
            assert passes == micro.backward_passes
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return gradients, {name: values.tolist() for name, values in metrics._sums.items()}, total


def assert_equal_runs(actual, expected):
    assert actual[0].keys() == expected[0].keys()
    for name, gradient in expected[0].items():
        tolerance = TOWER if "visual" in name else LANGUAGE
        assert relative_error(actual[0][name], gradient) <= tolerance, name
    assert actual[1].keys() == expected[1].keys()
    for name, sums in expected[1].items():
        assert actual[1][name] == pytest.approx(sums, rel=1e-9, abs=1e-12), name
    assert actual[2] == pytest.approx(expected[2], rel=1e-9)


@pytest.fixture
def prompts(mixed_prompts):
    kinds = [prompt.record.data_type for prompt in mixed_prompts]
    chosen = [kinds.index(kind) for kind in ("video", "image", "text")]
    return [mixed_prompts[index] for index in (*chosen, 1)]


@pytest.mark.parametrize("size", [1, 3, 16])
def test_slices_have_the_gradients_and_metrics_of_the_packed_row(tiny_policy64, prompts, size):
    assert_equal_runs(run(tiny_policy64, prompts, size), run(tiny_policy64, prompts, None))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(tiny_policy64, prompts, loss):
    assert_equal_runs(run(tiny_policy64, prompts, 2, loss=loss), run(tiny_policy64, prompts, None, loss=loss))


def test_gradient_checkpointing(tiny_policy64, prompts):
    expected = run(tiny_policy64, prompts, None)
    tiny_policy64.train()
    tiny_policy64.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal_runs(run(tiny_policy64, prompts, 3), expected)


def test_a_frozen_tower(tiny_policy64, prompts):
    for parameter in tiny_policy64.family.vision_parameters(tiny_policy64.model):
        parameter.requires_grad_(False)
    assert_equal_runs(run(tiny_policy64, prompts, 3), run(tiny_policy64, prompts, None))


def test_adapters_and_their_absence_as_reference(tiny_policy64, prompts):
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]), tiny_policy64.model)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in tiny_policy64.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:  # zeros would leave the other half without gradients
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    reference = ReferencePolicy(tiny_policy64)
    expected = run(tiny_policy64, prompts, None, reference=reference)
    assert any("lora_A" in name for name in expected[0])
    assert_equal_runs(run(tiny_policy64, prompts, 3, reference=reference), expected)


def test_several_micro_batches_with_inner_epochs(tiny_policy64, prompts):
    weights = {name: value.clone() for name, value in tiny_policy64.state_dict().items()}
    expected = run(tiny_policy64, prompts, None, epochs=2)
    tiny_policy64.load_state_dict(weights)
    actual = run(tiny_policy64, prompts, 3, epochs=2, groups=2)
    assert_equal_runs(actual, expected)


def test_a_gradient_scaler_scales_the_prompts_gradients_once(tiny_policy64, prompts):
    weight = next(parameter for name, parameter in tiny_policy64.named_parameters() if name.endswith("k_proj.weight"))
    found = []
    for scale in (1, 1024):
        tiny_policy64.zero_grad()
        state, _ = tiny_policy64.run_prompts(tiny_policy64.pack(tiny_policy64.collate(prompts), [()] * 4))
        (scale * state.last_hidden.square().sum()).backward()
        (scale * state.backward_loss()).backward()
        found.append(weight.grad)
    torch.testing.assert_close(found[1], 1024 * found[0])
