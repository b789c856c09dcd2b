"""What is known of a run before anything is loaded: the model's configuration, and how one rank computes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_modules.policy.loading import supported_model_type
from lightning_modules.policy_module import PolicyModule
from lightning_modules.training.precision import HALF_PRECISIONS
from rewards.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 36, 16, 2, 11008, 151936, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": (3584, 28, 28, 4, 18944, 152064, 3420),
    "Qwen/Qwen2.5-VL-72B-Instruct": (8192, 80, 64, 8, 29568, 152064, 3456),
}
"""Hidden size, layers, heads, key-value heads, feed-forward size, vocabulary; feed-forward size of the vision tower."""
_TRUE: Mapping[str, str] = {**HALF_PRECISIONS, "64-true": "float64"}
_AUTOCAST = {"bf16-mixed": "bfloat16", "bf16": "bfloat16", "16-mixed": "float16", "16": "float16"}


def model_config(model_name_or_path: str) -> PretrainedConfig:
    """The configuration of a published name, which needs no network, or of any other name or folder.

    Raises:
        UserError: there is none, or it is of a family that is not supported.
    """
    from transformers import AutoConfig, Qwen2_5_VLConfig

    if model_name_or_path not in _PUBLISHED or Path(model_name_or_path).is_dir():
        supported_model_type(model_name_or_path)
        return AutoConfig.from_pretrained(model_name_or_path)
    hidden, layers, heads, kv_heads, intermediate, vocabulary, vision_intermediate = _PUBLISHED[model_name_or_path]
    tied = model_name_or_path == "Qwen/Qwen2.5-VL-3B-Instruct"
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": intermediate,
            "vocab_size": vocabulary,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": vision_intermediate,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        tie_word_embeddings=tied,
    )


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Precision and distribution."""

    weight_dtype: torch.dtype = torch.float32
    compute_dtype: torch.dtype = torch.float32
    """Of autocast, where it is not that of the weights."""
    ranks: int = 1
    sharded: bool = False
    """Weights, gradients and optimizer state are spread over the ranks (FSDP2)."""
    offloaded: bool = False
    """Shards live in the host's memory."""
    reduce_every_backward: bool = False
    """Sharded gradients are exchanged after every micro-batch."""
    gather_once: bool = False
    """Sharded weights stay gathered over all backward passes of a step."""
    cuda: bool = False
    """The optimizer updates all parameters at once, as PyTorch does on a GPU; on the CPU one after the other."""

    @property
    def replicated(self) -> bool:
        return self.ranks > 1 and not self.sharded


def rank_config(module: PolicyModule, trainer: Mapping[str, Any], ranks: int | None = None) -> RankConfig:
    """One rank of a run.

    Args:
        module: SFT or GRPO module.
        trainer: the configuration under `trainer`.
        ranks: processes of the run; None takes trainer.devices x trainer.num_nodes, where an open number counts as 1.

    Raises:
        UserError: `ranks` is not positive.
    """
    if ranks is None:
        devices = trainer.get("devices") or 1
        devices = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
        ranks = devices * int(trainer.get("num_nodes") or 1)
    if ranks < 1:
        raise UserError(f"--ranks is {ranks}; it must be >= 1.")
    precision = str(trainer.get("precision"))
    weights = _TRUE.get(precision, module.dtype_name)
    strategy = trainer.get("strategy") or "auto"
    name = strategy if isinstance(strategy, str) else strategy["class_path"]
    options = {} if isinstance(strategy, str) else strategy.get("init_args") or {}
    return RankConfig(
        weight_dtype=getattr(torch, weights),
        compute_dtype=getattr(torch, _AUTOCAST.get(precision, weights)),
        ranks=ranks,
        sharded=bool(re.search("fsdp|modelparallel|model_parallel", name, re.IGNORECASE)),
        offloaded=bool(options.get("cpu_offload", False)),
        reduce_every_backward=bool(options.get("reduce_every_backward", False)),
        gather_once=bool(options.get("gather_once", False)),
        cuda=trainer.get("accelerator") != "cpu",
    )
