"""Answers to multiple-choice questions by the likelihood of the option letters, without sampling.

Every option is the text `answer_prefix` + letter. The tokens that all options begin with are put behind the prompt:
prompt and prefix are computed once for all options, as the shared prefix of a packed row, and each option is scored by
the log-probability of its remaining tokens. Prefix and letter are tokenized together, because a tokenizer may merge ">"
and "A" into one token, which a model then expects there.

Shapes: B prompts, G options, C tokens of an option, S = all options of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from datamodules.types import EncodedPrompt
from lightning_modules.policy.policy import Policy


def option_logprobs(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    letters: Sequence[Sequence[str]],
    *,
    answer_prefix: str,
    device: torch.device,
) -> list[dict[str, float]]:
    """Log-probability in nats of each option letter, given prompt and prefix, under the full softmax.

    Args:
        policy: the model.
        prompts: B prompts, on the CPU.
        letters: their option letters, at least two each.
        answer_prefix: stands between the prompt and the letter, such as an opening answer tag.
        device: of the policy.

    Returns:
        For each prompt: letter -> log-probability, in the letters' order.
    """
    options = [[_tokens(policy, answer_prefix + letter) for letter in offered] for offered in letters]
    shared = [_common_prefix(rows) for rows in options]
    longer = [_extended(prompt, rows[0][:count]) for prompt, rows, count in zip(prompts, options, shared, strict=True)]
    endings = [[row[count:] for row in rows] for rows, count in zip(options, shared, strict=True)]
    batch = policy.pack(policy.collate(longer).to(device), endings)
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            totals = iter(policy.logprobs(batch, temperature=1.0).logprobs.double().sum(dim=1).tolist())  # [S]
    finally:
        policy.train(training)
    return [{letter: next(totals) for letter in offered} for offered in letters]


def likeliest(logprobs: dict[str, float]) -> str:
    """The letter of the greatest log-probability; the first one of equals."""
    return max(logprobs, key=logprobs.__getitem__)


def _tokens(policy: Policy, text: str) -> Tensor:
    return torch.tensor(policy.tokenizer(text, add_special_tokens=False).input_ids)


def _common_prefix(rows: Sequence[Tensor]) -> int:
    """How many tokens all options begin with; at least one token of each is left."""
    columns = zip(*(row.tolist() for row in rows), strict=False)
    common = next((place for place, column in enumerate(columns) if len(set(column)) > 1), None)
    assert common is not None, "different letters make different texts, and none is the beginning of another"
    return common


def _extended(prompt: EncodedPrompt, tokens: Tensor) -> EncodedPrompt:
    return replace(prompt, input_ids=torch.cat([prompt.input_ids, tokens]))
