"""The estimate of `check model` against the measured peak of whole runs on the CPU.

    python tests/performance/memory_estimate.py [--only NAME ...] [--output FILE.json]

Each case trains random weights for two optimizer steps with the real module, Trainer and AdamW, in a process of its own
whose allocator keeps nothing back. Measured is the most resident memory beyond what the process had after a smaller
run of the same kind, so libraries are not counted; kernels that the CPU's library compiles for every shape in bfloat16
are not kept either. Estimated is the largest phase of
`lightning_modules.memory.step_memory`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datamodules.collate import PromptCollator, SFTCollator, SFTSample
from lightning_modules.functional.policy_loss_types import LossConfig
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.memory.configs import rank_config
from lightning_modules.memory.step_memory import StepMemory, StepSize
from lightning_modules.policy.adapters import AdapterConfig, add_adapters
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.trainable import freeze_parts
from lightning_modules.policy_module import PolicyModule
from lightning_modules.rollouts.types import SamplingConfig
from lightning_modules.sft_module import SFTModule
from lightning_modules.training.optim import OptimizerConfig
from rewards import Reward
from tests.performance.measure import MEBIBYTE, in_fresh_process, machine, resident_peak_mib
from tests.performance.random_models import (
    MERGE,
    PAD_TOKEN,
    SIZES,
    ModelSize,
    build_models,
    random_completions,
    video_grid,
    video_prompt,
)

RESULTS = Path(__file__).parent / "results"
WIDE = ModelSize(
    hidden=768,
    layers=4,
    heads=12,
    kv_heads=4,
    intermediate=3072,
    vocabulary=8192,
    mrope_section=(8, 12, 12),
    tied=False,
    vision_depth=4,
    vision_hidden=160,
    vision_intermediate=428,
    vision_heads=2,
    full_attention_blocks=(3,),
)
"""Weights, gradients and optimizer state outweigh activations, as in training of full size."""
NO_KERNEL_CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "LRU_CACHE_CAPACITY": "1"}
STEPS = 2
"""The second one finds what the first one leaves: gradients and optimizer state."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of run."""

    name: str
    stage: str = "grpo"
    size: str = "wide"
    precision: str = "32-true"
    checkpointing: bool = False
    beta: float = 0.0
    lora: bool = False
    prompts: int = 1
    micro_prompts: int | None = None
    group_size: int = 4
    prompt_tokens: int = 384
    completion_tokens: int = 48

    @property
    def model_size(self) -> ModelSize:
        return {**SIZES, "wide": WIDE}[self.size]


CASES = (
    Case(name="GRPO"),
    Case(
        name="GRPO, more activations than weights",
        size="small",
        group_size=8,
        prompt_tokens=1024,
        completion_tokens=128,
    ),
    Case(name="GRPO, checkpointing and reference", checkpointing=True, beta=0.04),
    Case(name="GRPO, bf16-mixed", precision="bf16-mixed", prompt_tokens=1024),
    Case(name="GRPO, bf16-mixed and checkpointing", precision="bf16-mixed", checkpointing=True),
    Case(name="GRPO, 2 prompts one by one", prompts=2, micro_prompts=1, beta=0.04),
    Case(name="GRPO, LoRA and checkpointing", lora=True, checkpointing=True, beta=0.04),
    Case(name="SFT", stage="sft", completion_tokens=256),
    Case(name="SFT, bf16-mixed and checkpointing", stage="sft", precision="bf16-mixed", checkpointing=True),
)


class RisingReward(Reward):
    """Completions of random weights have no text; so that there are advantages, each earns its number."""

    name = "rising"

    def score(self, group, raw):
        return [float(number) for number in range(len(group.completions))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of cases")
    parser.add_argument("--output", type=Path, default=RESULTS / "memory_estimate.json")
    options = parser.parse_args(arguments)
    os.environ |= NO_KERNEL_CACHE
    rows = []
    for case in CASES:
        if options.only is None or case.name in options.only:
            row = compare(case)
            rows.append(row)
            print(f"{case.name:<40}{row['estimated_mib']:>10.0f}{row['measured_mib']:>10.0f}{row['error']:>+9.1%}")
    result = {"date": date.today().isoformat(), "machine": machine(torch.device("cpu")), "steps": STEPS, "cases": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(case: Case) -> dict:
    estimated, measured = estimated_mib(case), in_fresh_process(measured_mib, case)
    phase = max(estimated, key=estimated.get)
    return {
        **asdict(case),
        "phases_mib": estimated,
        "largest_phase": phase,
        "estimated_mib": estimated[phase],
        "measured_mib": measured,
        "error": estimated[phase] / measured - 1,
    }


def estimated_mib(case: Case) -> dict[str, float]:
    """Peak of every phase."""
    module = _module(case)
    config = build_models(case.model_size, "meta", torch.float32).policy.model.config
    memory = StepMemory(module, config, rank_config(module, {"accelerator": "cpu", "precision": case.precision}, None))
    frames, rows, columns = video_grid(case.prompt_tokens)
    size = StepSize(
        prompts=case.prompts,
        grid=(frames, rows * MERGE, columns * MERGE),
        text_tokens=case.prompt_tokens - frames * rows * columns,
        completion_tokens=case.completion_tokens,
    )
    return {phase: peak.total() / MEBIBYTE for phase, peak in memory.phases(size).items()}


def measured_mib(case: Case) -> float:
    """Peak of a whole run beyond a finished smaller one."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _fit(replace(case, size="demo", prompt_tokens=128, completion_tokens=8))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_peak_mib(lambda: _fit(case))


def _fit(case: Case) -> None:
    import lightning as L

    module = _module(case)
    module.load_policy = lambda: _policy(case)
    prompts = [video_prompt(case.model_size, case.prompt_tokens, seed=seed) for seed in range(case.prompts)]
    batch = [prompts] * STEPS
    if case.stage == "grpo":
        collate = PromptCollator(pad_token_id=PAD_TOKEN)
    else:
        (target,) = random_completions(case.model_size, [case.completion_tokens])
        batch = [[SFTSample(prompt=prompt, target_ids=target) for prompt in prompts]] * STEPS
        collate = SFTCollator(pad_token_id=PAD_TOKEN)
    loader = torch.utils.data.DataLoader(batch, batch_size=None, collate_fn=collate)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            precision=case.precision,
            max_steps=STEPS,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        assert trainer.global_step == STEPS


def _module(case: Case) -> PolicyModule:
    shared = {
        "model_name_or_path": "random",
        "gradient_checkpointing": case.checkpointing,
        "lora": AdapterConfig() if case.lora else None,
        "optimizer": OptimizerConfig(learning_rate=1e-4, schedule="constant"),
    }
    if case.stage == "sft":
        return SFTModule(**shared)
    return GRPOModule(
        rewards=[RisingReward()],
        group_size=case.group_size,
        sampling=SamplingConfig(max_new_tokens=case.completion_tokens),
        loss_config=LossConfig(beta=case.beta),
        micro_batch_groups=case.micro_prompts,
        **shared,
    )


def _policy(case: Case) -> Policy:
    policy = build_models(case.model_size, "cpu", torch.float32, gradient_checkpointing=case.checkpointing).policy
    freeze_parts(policy.family.parts(policy.model), (), adapters=case.lora)
    if case.lora:
        add_adapters(policy.model, policy.family.language_model(policy.model), AdapterConfig())
    return policy


if __name__ == "__main__":
    main()
