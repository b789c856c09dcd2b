"""Optimizers and learning-rate schedules from YAML."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rewards.errors import UserError, check_choice

Schedule = Literal["constant", "linear", "cosine"]
Horizon = Literal["training", "epochs"]
OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]


OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw": ("torch.optim", "AdamW"),
    "adamw_8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "paged_adamw_8bit": ("bitsandbytes.optim", "PagedAdamW8bit"),
}
"""`OptimizerConfig.name` -> module and name of its class; bitsandbytes is imported only where it is used."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    name: OptimizerName = "adamw"
    """adamw_8bit keeps its state in 8 bits where a parameter has 4096 elements or more (2 bytes instead of 8 each);
    paged_adamw_8bit moves that state to the CPU when a GPU runs out of memory."""
    learning_rate: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    """Applied to matrices only, not to biases and norms."""
    schedule: Schedule = "linear"
    """What follows the warm-up: constant, or linear or cosine decay to `final_lr_fraction` at the last step."""
    schedule_horizon: Horizon = "training"
    """Which step is the schedule's last. training: the last that is taken, so a run that trainer.max_steps ends has
    decayed there. epochs: the last of trainer.max_epochs, also where trainer.max_steps ends the run long before it."""
    warmup_steps: int = 0
    """Optimizer steps of linear rise from zero."""
    final_lr_fraction: float = 0.0
    """Learning rate at the schedule's last step as a fraction of `learning_rate`."""

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, OPTIMIZERS)
        check_choice("optimizer.schedule_horizon", self.schedule_horizon, get_args(Horizon))
        if self.learning_rate <= 0:
            raise UserError(f"optimizer.learning_rate is {self.learning_rate}; it must be > 0.")
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps is {self.warmup_steps}; it must be >= 0.")
        if not 0 <= self.final_lr_fraction <= 1:
            raise UserError(f"optimizer.final_lr_fraction is {self.final_lr_fraction}; it must be in [0, 1].")


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """AdamW over the parameters that train."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    module, name = OPTIMIZERS[config.name]
    return getattr(importlib.import_module(module), name)(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=tuple(config.betas)
    )


def build_scheduler(optimizer: Optimizer, config: OptimizerConfig, total_steps: int) -> LambdaLR:
    """The schedule over `total_steps` optimizer steps; -1 stands for no end.

    Raises:
        UserError: a decaying schedule without a known end.
    """
    if config.schedule != "constant" and total_steps < 1:
        raise UserError(
            f"optimizer.schedule is {config.schedule!r}, which needs to know its last step, but with schedule_horizon: "
            f"{config.schedule_horizon} there is none; set trainer.max_epochs (or trainer.max_steps with "
            "schedule_horizon: training), or schedule: constant."
        )
    return LambdaLR(optimizer, partial(learning_rate_factor, config=config, total_steps=total_steps))


def learning_rate_factor(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """Fraction of the full learning rate at optimizer step `step` (from 0)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    span = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    decay = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * decay
