"""The packed forward against every completion with its own copy of the prompt."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from datamodules.collate import IGNORED_LABEL
from datamodules.encoding import join_vision
from datamodules.types import SFTBatch
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, count_batch
from lightning_modules.functional.policy_losses import LOSSES
from lightning_modules.policy.group_attention import PADDING_WASTE, _buckets
from lightning_modules.policy.shared_prefix import pack_index

LENGTHS = [[1, 4, 17, 9], [6, 6, 6, 6], [2, 30, 1, 3]]


def random_completions(generator, vocabulary):
    return [
        [torch.randint(20, vocabulary, (length,), generator=generator) for length in lengths] for lengths in LENGTHS
    ]


def repeated_prompt_logprobs(policy, prompts, completions, temperature):
    """The usual way: S rows [prompt | completion], right-padded, prompt and pixels repeated for every completion."""
    rows = [(p, c) for p, members in zip(prompts, completions, strict=True) for c in members]
    length = max(len(p.input_ids) + len(c) for p, c in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED_LABEL)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(rows):
        start, end = len(prompt.input_ids), len(prompt.input_ids) + len(completion)
        ids[row, :end] = torch.cat([prompt.input_ids, completion])
        labels[row, start:end] = completion
        mask[row, :end] = 1
    vision = join_vision([prompt.vision for prompt, _ in rows])
    batch = policy.with_positions(
        SFTBatch(records=[], input_ids=ids, attention_mask=mask, labels=labels, vision=vision)
    )
    hidden = policy._hidden(batch.input_ids, batch.vision, batch.position_ids)
    logits = hidden[:, :-1] @ policy.model.get_output_embeddings().weight.T / temperature
    chosen = torch.log_softmax(logits, -1).gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(2)
    return chosen[labels[:, 1:] != IGNORED_LABEL]


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def gradients(policy, logprobs):
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1), dtype=logprobs.dtype)
    policy.zero_grad(set_to_none=True)
    (logprobs * weights).sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_repeated_prompt_forward(
    tiny_policy64, mixed_prompts, checkpointing, temperature
):
    policy = tiny_policy64
    kinds = {prompt.record.data_type: prompt for prompt in mixed_prompts}
    assert set(kinds) == {"video", "image", "text"}
    prompts = list(kinds.values())
    completions = random_completions(torch.Generator().manual_seed(0), 384)

    expected = repeated_prompt_logprobs(policy, prompts, completions, temperature)
    expected_gradients = gradients(policy, expected)
    if checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = policy.pack(policy.collate(prompts), completions)
    packed = policy.logprobs(batch, temperature=temperature).logprobs[batch.mask]
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-6)  # the stock norm computes in float32

    packed_gradients = gradients(policy, packed)
    assert packed_gradients.keys() == expected_gradients.keys()
    for name, expected_gradient in expected_gradients.items():
        assert relative_error(packed_gradients[name], expected_gradient) <= 1e-6, name


def without_upcast(self, hidden_states):
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


def test_the_language_model_is_exact_where_its_norm_does_not_round(tiny_policy64, mixed_prompts, monkeypatch):
    monkeypatch.setattr(Qwen2_5_VLRMSNorm, "forward", without_upcast)
    prompts, completions = mixed_prompts[:3], random_completions(torch.Generator().manual_seed(0), 384)
    expected = repeated_prompt_logprobs(tiny_policy64, prompts, completions, 1.0)
    expected_gradients = gradients(tiny_policy64, expected)
    batch = tiny_policy64.pack(tiny_policy64.collate(prompts), completions)
    packed = tiny_policy64.logprobs(batch, temperature=1.0).logprobs[batch.mask]
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-12)
    for name, gradient in gradients(tiny_policy64, packed).items():
        if ".visual." not in name:  # the tower rotates in float32
            assert relative_error(gradient, expected_gradients[name]) <= 1e-12, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_get_the_same_gradients(tiny_policy64, mixed_prompts, checkpointing):
    policy = tiny_policy64
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, policy.model)
    policy.double()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)
    prompts, completions = mixed_prompts[:3], random_completions(torch.Generator().manual_seed(0), 384)
    expected_gradients = gradients(policy, repeated_prompt_logprobs(policy, prompts, completions, 1.0))
    if checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = policy.pack(policy.collate(prompts), completions)
    packed_gradients = gradients(policy, policy.logprobs(batch, temperature=1.0).logprobs[batch.mask])
    assert packed_gradients.keys() == expected_gradients.keys() and len(packed_gradients) >= 12
    for name, gradient in packed_gradients.items():
        assert relative_error(gradient, expected_gradients[name]) <= 1e-6, name


def test_a_prompt_is_not_influenced_by_its_neighbors(tiny_policy64, mixed_prompts):
    completions = random_completions(torch.Generator().manual_seed(0), 384)
    with torch.no_grad():
        prompts = tiny_policy64.collate(mixed_prompts[:3])
        batch = tiny_policy64.pack(prompts, completions)
        together = tiny_policy64.logprobs(batch, temperature=1.0).logprobs
        for index in range(3):
            alone_batch = tiny_policy64.pack(prompts.select([index]), completions[index : index + 1])
            alone = tiny_policy64.logprobs(alone_batch, temperature=1.0).logprobs
            rows = together[index * 4 : index * 4 + 4, : alone.shape[1]]
            torch.testing.assert_close(rows, alone, rtol=0, atol=1e-6)


def test_float32_gradients(tiny_policy, mixed_prompts):
    completions = random_completions(torch.Generator().manual_seed(0), 384)
    expected = gradients(tiny_policy, repeated_prompt_logprobs(tiny_policy, mixed_prompts[:3], completions, 1.0))
    batch = tiny_policy.pack(tiny_policy.collate(mixed_prompts[:3]), completions)
    actual = gradients(tiny_policy, tiny_policy.logprobs(batch, temperature=1.0).logprobs[batch.mask])
    for name, gradient in expected.items():
        assert relative_error(actual[name], gradient) <= 1e-5, name


def test_layout_and_predicting_rows():
    # Row: prompt 0 at 0..2, its completions' inputs at 3 and (none), prompt 1 at 4..5, its completion's at 6..7.
    layout, rows = pack_index([3, 2], [[2, 1], [3]])
    assert layout == ((3, (1, 0)), (2, (2,)))
    assert rows.tolist() == [2, 3, 2, 5, 6, 7]


def test_buckets_restore_the_order_and_bound_the_padding():
    lengths = (3, 17, 16, 2, 40, 15)
    buckets = _buckets(lengths, torch.device("cpu"))
    packed = torch.arange(sum(lengths))
    assert packed[buckets.gather][buckets.scatter].tolist() == packed.tolist()
    assert sum(count for count, _ in buckets.shapes) == len(lengths)
    assert len(buckets.gather) == sum(count * longest for count, longest in buckets.shapes)
    assert len(buckets.gather) <= PADDING_WASTE * sum(lengths)


def test_the_vision_tower_keeps_its_attention(tiny_policy):
    config = tiny_policy.model.config
    assert config.vision_config._attn_implementation == "sdpa"
    assert config.text_config._attn_implementation == "shared_prefix_sdpa"
    assert copy.deepcopy(config).to_dict().get("attn_implementation") is None


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_the_gradient_of_the_repeated_prompt_forward(tiny_policy64, mixed_prompts, loss):
    prompts, completions = mixed_prompts[:3], random_completions(torch.Generator().manual_seed(0), 384)
    batch = tiny_policy64.pack(tiny_policy64.collate(prompts), completions)
    counts = count_batch([batch.mask], max_new_tokens=32)
    generator = torch.Generator().manual_seed(2)
    noise = [0.2 * torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    advantages = torch.randn(len(batch.mask), generator=generator, dtype=torch.float64)

    def gradients_of(logprobs):
        output = LOSSES[loss](
            LossInputs(
                logprobs=logprobs,
                old_logprobs=logprobs.detach() + noise[0],
                reference_logprobs=logprobs.detach() + noise[1],
                advantages=advantages,
                mask=batch.mask,
                denominator=LOSSES[loss].denominator(counts),
            ),
            LossConfig(),
        )
        tiny_policy64.zero_grad(set_to_none=True)
        output.loss.backward()
        return {name: p.grad for name, p in tiny_policy64.named_parameters() if p.grad is not None}

    repeated = repeated_prompt_logprobs(tiny_policy64, prompts, completions, 1.0)
    padded = torch.zeros(batch.mask.shape, dtype=torch.float64).masked_scatter(batch.mask, repeated)
    expected = gradients_of(padded)
    actual = gradients_of(tiny_policy64.logprobs(batch, temperature=1.0).logprobs)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative_error(actual[name], gradient) <= 1e-6, name
