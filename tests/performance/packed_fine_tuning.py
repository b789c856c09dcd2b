"""Fine-tuning on records of unequal length: in one row without padding, and padded to the longest.

    python tests/performance/packed_fine_tuning.py [--size small] [--repeats 5]

Both compute the same gradients, which is checked. Prints rows of a Markdown table; methods take turns in one process.

Shapes: B records, L tokens of a record.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datamodules.collate import IGNORED_LABEL
from datamodules.types import SFTBatch
from lightning_modules.functional.logprobs import token_statistics
from lightning_modules.policy.policy import Policy
from tests.performance.measure import interleaved_seconds
from tests.performance.random_models import SIZES, build_models

LENGTHS = {
    "equal": (512,) * 8,
    "2 x apart": (320, 352, 400, 448, 512, 544, 592, 640),
    "4 x apart": (256, 288, 352, 416, 544, 672, 832, 1024),
    "one long record": (256,) * 7 + (1024,),
}
TARGET = 128
"""Tokens at the end of each record that it is trained on."""


def batch_of(lengths: Sequence[int], vocabulary: int) -> SFTBatch:
    """Random text of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    shape, longest = (len(lengths), max(lengths)), torch.arange(max(lengths))
    real = longest < torch.tensor(lengths)[:, None]
    ids = torch.randint(20, vocabulary, shape, generator=generator) * real
    labeled = real & (longest >= torch.tensor(lengths)[:, None] - TARGET)
    return SFTBatch(
        records=[],
        input_ids=ids,
        attention_mask=real.long(),
        labels=ids.masked_fill(~labeled, IGNORED_LABEL),
        vision=None,
    )


def padded_logprobs(policy: Policy, batch: SFTBatch) -> Tensor:
    """As the packed row's, of rows padded to the longest record."""
    assert batch.position_ids is not None
    embeddings = policy.embed(batch.input_ids, batch.vision)
    model = policy.family.language_model(policy.model)
    hidden = model(inputs_embeds=embeddings, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    labels = batch.labels[:, 1:]
    labeled = labels != IGNORED_LABEL
    head = policy.model.get_output_embeddings().weight
    return token_statistics(hidden[:, :-1][labeled], head, labels[labeled]).logprobs


def gradients(policy: Policy, logprobs: Callable[[], Tensor]) -> dict[str, Tensor]:
    policy.zero_grad(set_to_none=True)
    logprobs().sum().backward()
    return {name: value.grad for name, value in policy.named_parameters() if value.grad is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    policy = build_models(SIZES[given.size], "cpu", torch.float32).policy.train()
    print("| lengths | padding | tokens/s, padded | tokens/s, one row | ratio | largest relative error of a gradient |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, lengths in LENGTHS.items():
        batch = policy.with_positions(batch_of(lengths, SIZES[given.size].vocabulary))
        ways = {
            "padded": lambda batch=batch: padded_logprobs(policy, batch),
            "packed": lambda batch=batch: policy.target_statistics(batch).logprobs,
        }
        expected, actual = (gradients(policy, way) for way in ways.values())
        error = max(((actual[k] - g).norm() / g.norm().clamp(min=1e-12)).item() for k, g in expected.items())
        works = {method: (lambda way=way: gradients(policy, way)) for method, way in ways.items()}
        seconds = interleaved_seconds(works, given.repeats, torch.device("cpu"))
        padded, packed = (sum(lengths) / statistics.median(seconds[method]) for method in works)
        waste = 1 - sum(lengths) / (len(lengths) * max(lengths))
        print(
            f"| {name} | {waste:.0%} | {padded:.0f} | {packed:.0f} | {packed / padded:.2f} | {error:.0e} |", flush=True
        )


if __name__ == "__main__":
    main()
