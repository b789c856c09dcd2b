"""Option letters by likelihood: packed behind one prompt they score as each option does in a row of its own."""

from __future__ import annotations

import pytest
import torch

from datamodules.collate import SFTCollator, SFTSample
from lightning_modules.rollouts.choice_scoring import likeliest, option_logprobs

LETTERS = ("ABCD", "AB", "ABCDE")


def by_itself(policy, prompt, text: str, prefix: str) -> float:
    """log p(text | prompt, prefix) from one unpacked row: all tokens of both, less those of the prefix alone."""
    tokenizer = policy.tokenizer
    tokens = tokenizer(prefix + text, add_special_tokens=False).input_ids
    collate = SFTCollator(pad_token_id=tokenizer.pad_token_id)
    batch = policy.with_positions(collate([SFTSample(prompt=prompt, target_ids=torch.tensor(tokens))]))
    with torch.no_grad():
        logprobs = policy.target_statistics(batch).logprobs.double()
    kept = len(tokenizer(prefix, add_special_tokens=False).input_ids)
    return logprobs[kept:].sum().item()


@pytest.mark.parametrize("prefix", ["", "<answer>", "<think>I see.</think>\n<answer>"])
def test_equals_one_forward_per_option(tiny_policy, mixed_prompts, prefix):
    prompts = mixed_prompts[:3]
    assert len({len(prompt.input_ids) for prompt in prompts}) > 1
    scored = option_logprobs(tiny_policy, prompts, LETTERS, answer_prefix=prefix, device=torch.device("cpu"))
    tiny_policy.eval()
    for prompt, letters, logprobs in zip(prompts, LETTERS, scored, strict=True):
        naive = {letter: by_itself(tiny_policy, prompt, letter, prefix) for letter in letters}
        assert list(logprobs) == list(letters)
        assert logprobs == pytest.approx(naive, abs=1e-5)
        assert max(logprobs.values()) - min(logprobs.values()) > 1e-2  # else the comparison shows nothing


class MergingTokenizer:
    """As Qwen's, it makes one token of ">A"; other letters stand alone behind ">"."""

    def __init__(self, tokenizer, merged: int) -> None:
        self.tokenizer, self.merged, self.pad_token_id = tokenizer, merged, tokenizer.pad_token_id

    def __call__(self, text, **options):
        if not text.endswith(">A"):
            return self.tokenizer(text, **options)
        encoded = self.tokenizer(text[:-2], **options)
        encoded["input_ids"] = [*encoded["input_ids"], self.merged]
        return encoded


def test_letters_that_merge_with_the_prefix_are_scored_as_they_are_tokenized(tiny_policy, mixed_prompts):
    tokenizer, prompt = tiny_policy.tokenizer, mixed_prompts[0]
    merged = tokenizer("C", add_special_tokens=False).input_ids[-1]  # stands for ">A"
    tiny_policy.processor.tokenizer = MergingTokenizer(tokenizer, merged)
    (scored,) = option_logprobs(tiny_policy, [prompt], ["AB"], answer_prefix="x>", device=torch.device("cpu"))
    tiny_policy.processor.tokenizer = tokenizer
    tiny_policy.eval()
    # "x>A" is [x, merged], "x>B" is [x, >, B]: what both begin with is "x".
    assert scored["A"] == pytest.approx(by_itself(tiny_policy, prompt, "C", "x"), abs=1e-5)
    assert scored["B"] == pytest.approx(by_itself(tiny_policy, prompt, ">B", "x"), abs=1e-5)


def test_the_policy_is_left_in_its_mode(tiny_policy, mixed_prompts):
    for training in (True, False):
        tiny_policy.train(training)
        option_logprobs(tiny_policy, mixed_prompts[:1], ["AB"], answer_prefix="", device=torch.device("cpu"))
        assert tiny_policy.training is training


def test_likeliest_takes_the_first_of_equals():
    assert likeliest({"A": -2.0, "B": -1.0, "C": -1.0}) == "B"
