"""Started by torchrun: packed log-probabilities and gradients of a policy sharded by FSDP2, against a whole one."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from datamodules.encoding import PromptEncoder
from datamodules.media import read_media
from datamodules.records import RecordFile
from lightning_modules.policy.loading import load_policy
from lightning_modules.rollouts.transformers_engine import TransformersEngine
from lightning_modules.rollouts.types import SamplingConfig
from tests.lightning_modules.module_runs import PROFILE, TEMPLATE


def sharded(policy):
    for block in [*policy.model.model.visual.blocks, *policy.model.model.language_model.layers]:
        fully_shard(block)
    fully_shard(policy)
    for method in ("logprobs", "prefill", "decode"):
        register_fsdp_forward_method(policy, method)
    return policy


def gradients(policy, batch):
    logprobs = policy.logprobs(batch, temperature=1.0).logprobs
    (logprobs * torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)).sum().backward()
    named = {name: parameter.grad for name, parameter in policy.named_parameters()}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in named.items()}


def main(model: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    whole, parts = load_policy(model), sharded(load_policy(model, gradient_checkpointing=True))
    encoder = PromptEncoder(whole.tokenizer, TEMPLATE)
    root = Path(data).parent
    prompts = [encoder.encode_prompt(record, read_media(record, root, PROFILE)) for record in RecordFile(data, root)]
    # Ranks hold other kinds of records: all have media on one, none has on the other.
    media = [prompt for prompt in prompts if prompt.vision is not None]
    text = [prompt for prompt in prompts if prompt.vision is None]
    by_rank = [media[:2], text[:2]]
    completions = [[torch.arange(20, 20 + length) for length in (3, 9, 1)]] * 2

    expected: dict[str, torch.Tensor] = {}
    for mine in by_rank:
        whole.zero_grad(set_to_none=True)
        for name, gradient in gradients(whole, whole.pack(whole.collate(mine), completions)).items():
            expected[name] = expected.get(name, 0) + gradient / len(by_rank)
    mine = by_rank[dist.get_rank()]
    for name, gradient in gradients(parts, parts.pack(parts.collate(mine), completions)).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)

    batch = whole.collate(mine)
    config = SamplingConfig(max_new_tokens=6)
    groups = [TransformersEngine(p).generate(batch, config, group_size=2, seeds=[1, 2]) for p in (whole, parts)]
    texts = [[completion.text for group in result for completion in group.completions] for result in groups]
    assert texts[0] == texts[1], texts
    print("sharded equals whole", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
