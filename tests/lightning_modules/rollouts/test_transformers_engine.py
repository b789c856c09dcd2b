"""The sampler against the trainer, against transformers' generate, and against itself in other batches."""

import pytest
import torch

from lightning_modules.rollouts.transformers_engine import TransformersEngine
from lightning_modules.rollouts.types import SamplingConfig

CONFIG = SamplingConfig(max_new_tokens=24)


def sampled(policy, prompts, *, group_size=4, config=CONFIG, seeds=None):
    seeds = list(range(len(prompts))) if seeds is None else seeds
    return TransformersEngine(policy).generate(policy.collate(prompts), config, group_size=group_size, seeds=seeds)


def trainer_logprobs(policy, groups, temperature=1.0):
    prompts = policy.collate([group.prompt for group in groups])
    batch = policy.pack(prompts, [[completion.token_ids for completion in group.completions] for group in groups])
    with torch.no_grad():
        return policy.logprobs(batch, temperature=temperature).logprobs[batch.mask]


def flat(groups, field):
    return torch.cat([getattr(completion, field) for group in groups for completion in group.completions])


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_sampler_and_trainer_agree(tiny_policy, mixed_prompts, temperature):
    config = SamplingConfig(max_new_tokens=24, temperature=temperature)
    groups = sampled(tiny_policy, mixed_prompts, config=config)
    difference = (trainer_logprobs(tiny_policy, groups, temperature) - flat(groups, "policy_logprobs")).abs().max()
    assert difference < 1e-4


def test_greedy_equals_the_installed_generate(tiny_policy64, mixed_prompts):
    policy = tiny_policy64
    config = SamplingConfig(max_new_tokens=12, greedy=True)
    for prompt in mixed_prompts:
        # A text-only prompt has the same positions in every version of transformers, media do not.
        if prompt.vision is not None:
            continue
        ids = prompt.input_ids[None]
        expected = policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=list(policy.family.vision_token_ids),
        )[0, ids.shape[1] :]
        (group,) = sampled(policy, [prompt], group_size=1, config=config)
        assert group.completions[0].token_ids.tolist() == expected.tolist()


def test_a_group_does_not_depend_on_its_batch(tiny_policy64, mixed_prompts):
    seeds = list(range(100, 100 + len(mixed_prompts)))
    together = sampled(tiny_policy64, mixed_prompts, seeds=seeds)
    for prompt, seed, group in zip(mixed_prompts, seeds, together, strict=True):
        (alone,) = sampled(tiny_policy64, [prompt], seeds=[seed])
        for one, other in zip(alone.completions, group.completions, strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()


def test_members_and_seeds_differ(tiny_policy, mixed_prompts):
    (first,) = sampled(tiny_policy, mixed_prompts[:1], seeds=[1])
    (second,) = sampled(tiny_policy, mixed_prompts[:1], seeds=[2])
    texts = [completion.text for group in (first, second) for completion in group.completions]
    assert len(set(texts)) == len(texts)


def test_completions_end_at_eos_and_hold_no_vision_tokens(tiny_policy, mixed_prompts):
    with torch.no_grad():  # make media tokens and the end of sequence likely
        weight = tiny_policy.model.get_output_embeddings().weight
        weight[list(tiny_policy.family.vision_token_ids)] *= 3
        weight[tiny_policy.tokenizer.eos_token_id] *= 3
    groups = sampled(tiny_policy, mixed_prompts, group_size=8)
    ends = tiny_policy.model.generation_config.eos_token_id
    assert len(ends) == 2
    banned = torch.tensor(tiny_policy.family.vision_token_ids)
    completions = [completion for group in groups for completion in group.completions]
    assert {completion.truncated for completion in completions} == {True, False}
    for completion in completions:
        ids = completion.token_ids
        assert not torch.isin(ids, banned).any()
        assert not torch.isin(ids[:-1], torch.tensor(ends)).any()
        assert completion.truncated == (ids[-1].item() not in ends)
        assert not completion.truncated or len(ids) == CONFIG.max_new_tokens
        assert len(ids) == len(completion.sampling_logprobs) == len(completion.policy_logprobs)


def test_sampling_logprobs_are_those_of_the_filtered_distribution(tiny_policy, mixed_prompts):
    config = SamplingConfig(max_new_tokens=8, top_k=1)
    groups = sampled(tiny_policy, mixed_prompts[:2], config=config)
    assert flat(groups, "sampling_logprobs").abs().max() == 0  # one token left: probability 1
    assert (flat(groups, "policy_logprobs") < 0).all()


def test_the_training_mode_is_left_as_it_was(tiny_policy, mixed_prompts):
    tiny_policy.train()
    sampled(tiny_policy, mixed_prompts[:1])
    assert tiny_policy.training and tiny_policy.model.training


def test_impossible_sampling_settings_are_refused():
    for setting in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 1.0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            SamplingConfig(**setting)
