"""What is measured for a GRPO group: one video prompt, G completions, several ways to compute the same.

Shapes: G completions, P prompt tokens, C completion tokens, N = G * C, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datamodules.types import PromptBatch
from lightning_modules.functional.logprobs import token_statistics
from lightning_modules.rollouts.transformers_engine import TransformersEngine
from lightning_modules.rollouts.types import SamplingConfig
from tests.performance.group_updates import updates
from tests.performance.measure import Work
from tests.performance.random_models import Models, random_completions, video_prompt
from tests.performance.repeated_prompt import (
    RepeatedGroup,
    full_softmax_logprobs,
    repeated_group,
    repeated_prefill,
    stock_generate,
    vision_once_prefill,
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One group of sizes, measured for several methods."""

    case: str
    """A key of `CASES`."""
    methods: tuple[str, ...]
    prompt_tokens: int = 1024
    group_size: int = 8
    completion_tokens: int = 256
    """Of the longest completion."""
    unequal: bool = False
    """Completion lengths spread evenly from an eighth of the longest to the longest; else all the same."""
    vocabulary: int = 32768
    """Of the case `logprobs`; the other cases take the model's."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        if not self.unequal:
            return [self.completion_tokens] * self.group_size
        shares = torch.linspace(1 / 8, 1, self.group_size)
        return (shares * self.completion_tokens).ceil().int().tolist()

    @property
    def useful_tokens(self) -> int:
        """What the rate counts: the prompt's tokens when it is read, else those of the completions."""
        return self.prompt_tokens if self.case == "rollout_prefill" else sum(self.lengths)


def build_work(models: Models, scenario: Scenario) -> dict[str, Work]:
    """The work of each method of `scenario`, with its inputs ready on the device."""
    available = CASES[scenario.case](models, scenario)
    return {method: available[method] for method in scenario.methods}


def group_updates(models: Models, scenario: Scenario) -> dict[str, Callable[[], Tensor]]:
    """Per method, the backward passes of the same completions, and the log-probabilities [G, C] they began with."""
    prompt = video_prompt(models.size, scenario.prompt_tokens)
    return updates(models, prompt, random_completions(models.size, scenario.lengths))


def _prompt_rows(models: Models, scenario: Scenario) -> tuple[RepeatedGroup, PromptBatch]:
    prompt = video_prompt(models.size, scenario.prompt_tokens)
    rows = repeated_group(models, prompt, [torch.empty(0, dtype=torch.long)] * scenario.group_size)
    return rows, models.policy.collate([prompt]).to(models.device)


def _prefill_case(models: Models, scenario: Scenario) -> dict[str, Work]:
    """Prompt to the logits of G first tokens; `generate` and `ours` also draw those tokens."""
    rows, _ = _prompt_rows(models, scenario)
    one_token = _samplers(models, replace(scenario, completion_tokens=1))
    return {
        "repeated": _in_evaluation(models.stock, lambda: repeated_prefill(models.stock, rows)),
        "vision_once": _in_evaluation(models.stock, lambda: vision_once_prefill(models.stock, rows)),
        "generate": one_token["generate"],
        "ours": one_token["ours"],
    }


def _in_evaluation(model: nn.Module, work: Work) -> Work:
    def wrapped() -> None:
        model.eval()  # with gradient checkpointing, training mode would drop the cache
        try:
            with torch.no_grad():
                work()
        finally:
            model.train()

    return wrapped


def _samplers(models: Models, scenario: Scenario) -> dict[str, Callable[[], list[Tensor]]]:
    """Per method, G completions of exactly C tokens."""
    rows, batch = _prompt_rows(models, scenario)
    engine = TransformersEngine(models.policy)
    config = SamplingConfig(max_new_tokens=scenario.completion_tokens)

    def stock(repeat_inputs: bool) -> Callable[[], list[Tensor]]:
        options = {"new_tokens": scenario.completion_tokens, "repeat_inputs": repeat_inputs}
        return lambda: list(stock_generate(models.stock, rows, **options).cpu())

    def shared() -> list[Tensor]:
        (group,) = engine.generate(batch, config, group_size=scenario.group_size, seeds=[0])
        return [completion.token_ids for completion in group.completions]

    return {"repeated": stock(repeat_inputs=True), "generate": stock(repeat_inputs=False), "ours": shared}


def _step_case(models: Models, scenario: Scenario) -> dict[str, Work]:
    """Sample a group, then update on it; `generate` updates with the video encoded once."""
    prompt = video_prompt(models.size, scenario.prompt_tokens)
    method_of = {"repeated": "repeated", "generate": "vision_once", "ours": "ours"}

    def work(sample: Callable[[], list[Tensor]], method: str) -> Work:
        return lambda: updates(models, prompt, sample())[method]()

    samplers = _samplers(models, scenario)
    return {method: work(samplers[method], update) for method, update in method_of.items()}


def _logprobs_case(models: Models, scenario: Scenario) -> dict[str, Work]:
    """From hidden states to the gradients of hidden states and output projection."""
    count, width = scenario.group_size * scenario.completion_tokens, models.size.hidden
    options = {"device": models.device, "dtype": models.stock.dtype}
    hidden = torch.randn(count, width, **options).requires_grad_()
    weight = torch.randn(scenario.vocabulary, width, **options).mul_(width**-0.5).requires_grad_()
    targets = torch.randint(scenario.vocabulary, (count,), device=models.device)
    # Gradients exist beforehand, as in training: they are no part of what the two ways differ in.
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    chunk = models.policy.logprob_chunk_size

    def chunked() -> Tensor:
        return token_statistics(hidden, weight, targets, chunk_size=chunk).logprobs

    return {
        "repeated": lambda: full_softmax_logprobs(hidden @ weight.T, targets).mean().backward(),
        "ours": lambda: chunked().mean().backward(),
    }


CASES: Mapping[str, Callable[[Models, Scenario], Mapping[str, Work]]] = {
    "rollout_prefill": _prefill_case,
    "rollout": _samplers,
    "update": group_updates,
    "logprobs": _logprobs_case,
    "step": _step_case,
}
"""Case -> its methods. `repeated` is the way of the published code, the base of every ratio."""
