"""What becomes of a training step whose loss, gradient norm or reward is not finite: it never reaches the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from datamodules.types import EncodedPrompt, SFTBatch
from lightning_modules.rollouts.types import NonFiniteLogitsError, RolloutGroup
from lightning_modules.training.stored_batch import StoredBatch
from lightning_modules.training.typed_lightning import callbacks_of
from rewards.errors import UserError, check_choice
from rewards.suite import NonFiniteScoreError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import nn

OnNonfinite = Literal["stop", "skip"]
SKIPPED_KEY = "skipped_steps"
"""Of a Lightning checkpoint: the steps that the run has skipped so far."""


class NonFiniteError(UserError):
    """A step was not finite and ended the run before its optimizer step; the weights are those of the step before."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens before an optimizer step whose loss, gradient norm or rewards are not finite."""

    on_nonfinite: OnNonfinite = "stop"
    """stop: the run ends with an error and keeps its weights and checkpoints. skip: the step passes without changing
    weights or optimizer; it counts as a step, so data order and learning rate stay those of the run. Either way the
    batch is written to `nonfinite` in trainer.default_root_dir, for `python cli.py check batch FILE`. Infinite
    gradients under precision 16-mixed are left to its loss scaler."""
    max_skipped_steps: int = 10
    """Skipped steps of the whole run, resumed parts included, after which the next one stops it."""

    def __post_init__(self) -> None:
        check_choice("model.guard.on_nonfinite", self.on_nonfinite, get_args(OnNonfinite))
        if self.max_skipped_steps < 1:
            raise UserError(
                f"model.guard.max_skipped_steps is {self.max_skipped_steps}; it must be >= 1 (on_nonfinite: stop skips "
                "none)."
            )


class GuardedModule(Protocol):
    """What the guard looks at in a module that trains a policy."""

    @property
    def trainer(self) -> Trainer: ...

    @property
    def policy(self) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class _RankReport:
    """What one rank has found out about a step that is not finite."""

    faults: tuple[str, ...]
    """Of this rank alone, such as "the loss is nan"."""
    records: tuple[str, ...]
    file: str | None
    """The batch of this rank; None where it was not written, because other ranks have the fault."""
    weights: tuple[str, ...]
    """Names of parameters with values that are not finite."""


class NonFiniteGuard:
    """Decides, alike on all ranks, whether a training step may reach the optimizer.

    A module shows it what belongs to the step (`watch_sft` or `watch_rollout`), samples and scores under
    `noting_faults`, and asks `allows` before it steps the optimizer.

    Args:
        config: stop or skip.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped = 0
        """Steps skipped by the run so far; part of its checkpoints."""
        self._losses: list[Tensor] = []
        self._rollout_fault: str | None = None
        self._batches: list[SFTBatch] = []
        self._groups: list[RolloutGroup] = []
        self._shuffled: list[tuple[str, ...] | None] = []

    def watch_sft(self, loss: Tensor, batch: SFTBatch) -> None:
        """Add a micro-batch and its loss to the step."""
        self._losses.append(loss.detach())
        self._batches.append(batch)

    def watch_prompts(self, prompts: Sequence[EncodedPrompt]) -> None:
        """Make prompts without completions the step's batch."""
        self.watch_rollout([RolloutGroup(prompt=prompt, completions=()) for prompt in prompts], [None] * len(prompts))

    def watch_rollout(self, groups: list[RolloutGroup], shuffled: list[tuple[str, ...] | None]) -> None:
        """Make a rollout the step's batch; groups that are drawn again take their place in the same list."""
        self._groups, self._shuffled = groups, shuffled

    @contextmanager
    def noting_faults(self) -> Iterator[None]:
        """Leave the block where logits or a score are not finite. `allows` then answers for all ranks: no rank may stop
        alone, the others would wait for it."""
        try:
            yield
        except (NonFiniteScoreError, NonFiniteLogitsError) as error:
            self._rollout_fault = str(error)

    def allows(
        self, module: GuardedModule, *, loss: float = 0.0, grad_norm: float = 0.0, advantages: Tensor | None = None
    ) -> bool:
        """Whether the optimizer may use this step; all ranks call it together and get the same answer.

        Args:
            module: being trained.
            loss: of this rank, beside the watched ones.
            grad_norm: of the whole step, equal on all ranks; 0 where there are no gradients yet.
            advantages: float [B, G] of the watched rollout, for the stored batch.

        Returns:
            True, or False for a step to skip.

        Raises:
            NonFiniteError: the step is not finite and `on_nonfinite` is stop, the limit of skipped steps is reached, or
                the weights themselves are not finite.
        """
        losses = [loss, *(value.item() for value in self._losses)]
        own = [f"the loss is {value}" for value in losses if not math.isfinite(value)][:1]
        own += [] if self._rollout_fault is None else [self._rollout_fault]
        scaled = getattr(module.trainer.precision_plugin, "scaler", None) is not None
        shared = [] if scaled or math.isfinite(grad_norm) else [f"the gradient norm is {grad_norm}"]
        allowed = not _any_rank(module.trainer, bool(own or shared))
        if not allowed:
            self._judge(module, own, shared, advantages)
        self._losses, self._batches, self._rollout_fault = [], [], None
        return allowed

    def _judge(self, module: GuardedModule, own: list[str], shared: list[str], advantages: Tensor | None) -> None:
        """Write the batches of the ranks at fault, then stop the run or count the step as skipped."""
        trainer = module.trainer
        stored = StoredBatch(
            step=trainer.global_step + 1,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            faults=(*own, *shared),
            config=_saved_config(trainer),
            batches=self._batches,
            groups=self._groups,
            shuffled=self._shuffled,
            advantages=advantages,
        )
        report = _RankReport(
            faults=tuple(own),
            records=stored.records,
            file=None,
            weights=tuple(name for name, value in module.policy.named_parameters() if not _is_finite(value)),
        )
        has_culprit = _any_rank(trainer, bool(own))
        if own or not has_culprit:  # a gradient alone does not say whose it is
            report = replace(report, file=str(stored.save(Path(trainer.default_root_dir) / "nonfinite")))
        reports = _gathered(trainer, report)
        message = _message(stored.step, reports, shared)
        if self.config.on_nonfinite == "stop":
            raise NonFiniteError(
                f"{message}\n  To go on without such steps, resume with --model.init_args.guard.on_nonfinite=skip."
            )
        if any(found.weights for found in reports):
            raise NonFiniteError(f"{message}\n  Skipping steps does not help.")
        if self.skipped >= self.config.max_skipped_steps:
            raise NonFiniteError(
                f"{message}\n  {self.skipped} steps were skipped before; model.guard.max_skipped_steps allows no more."
            )
        self.skipped += 1
        rank_zero_warn(f"{message}\n  Skipped, number {self.skipped} of at most {self.config.max_skipped_steps}.")


def _message(step: int, reports: Sequence[_RankReport], shared: Sequence[str]) -> str:
    """What happened where, in which records, and how to look into it."""
    lines = [f"Step {step} is not finite: {'; '.join(shared)}." if shared else f"Step {step} is not finite."]
    lines.append(f"  The optimizer did not use it; the weights are those after step {step - 1}.")
    for rank, report in enumerate(reports):
        if report.file is None:
            continue
        where = f"rank {rank} of {len(reports)}"
        lines.append(f"  {where}: {'; '.join(report.faults) or 'its own loss is finite'}")
        lines.append(f"    records: {', '.join(report.records)}")
        lines.append(f"    batch: {report.file}")
        lines.append(f"    replay: python cli.py check batch {report.file}")
    broken = sorted({name for report in reports for name in report.weights})
    if broken:
        lines.append(
            f"  The weights were not finite before this step: {len(broken)} parameters, {broken[0]} for one. Resume "
            "from an earlier checkpoint, or look for the fault in the model that the run began with."
        )
    return "\n".join(lines)


def _saved_config(trainer: Trainer) -> str | None:
    """The settings of a run of the command line, as YAML; None for a run from Python."""
    from lightning.pytorch.cli import SaveConfigCallback

    for callback in callbacks_of(trainer):
        if isinstance(callback, SaveConfigCallback):
            return callback.parser.dump(callback.config, skip_none=False)
    return None


def _is_finite(parameter: Tensor) -> bool:
    """Of a sharded parameter: the part of this rank."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return bool(local.isfinite().all())


def _any_rank(trainer: Trainer, flag: bool) -> bool:
    if trainer.world_size == 1:
        return flag
    found = torch.tensor(float(flag), device=trainer.strategy.root_device)
    return trainer.strategy.reduce(found, reduce_op="max").item() > 0


def _gathered(trainer: Trainer, value: Any) -> list[Any]:
    """The values of all ranks; returns where all ranks have arrived."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
