"""`python cli.py check batch`: compute again what a run found not to be finite, for one stored batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.text_table import text_table
from lightning_modules.commands.run_config import RunConfig
from lightning_modules.functional.advantages import group_relative_advantages
from lightning_modules.policy.export import load_trained, read_checkpoint, run_settings
from lightning_modules.rollouts.scoring import reward_input
from lightning_modules.training.last_checkpoint import last_checkpoint
from lightning_modules.training.step_metrics import StepMetrics
from lightning_modules.training.stored_batch import StoredBatch
from rewards.errors import UserError
from rewards.suite import NonFiniteScoreError

if TYPE_CHECKING:
    from lightning_modules.grpo_module import GRPOModule
    from lightning_modules.policy_module import PolicyModule
    from lightning_modules.sft_module import SFTModule

SHOWN_NAMES = 5
"""Parameters that a line of the report names; it says how many more there are."""


@dataclass(frozen=True, kw_only=True)
class ReplayedPart:
    """One backward pass: a micro-batch of fine-tuning, or one group of a rollout."""

    records: tuple[str, ...]
    loss: float
    broken_gradients: tuple[str, ...]
    """Parameters whose gradient of this pass alone is not finite."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What `check batch` found."""

    stored: StoredBatch
    weights: str
    """Which weights were used."""
    broken_weights: tuple[str, ...]
    score_fault: str | None
    """What is wrong with the rewards."""
    parts: tuple[ReplayedPart, ...]

    @property
    def ok(self) -> bool:
        """Everything is finite with these weights."""
        finite = all(torch.isfinite(torch.tensor(part.loss)) and not part.broken_gradients for part in self.parts)
        return finite and not self.broken_weights and self.score_fault is None

    def render(self) -> str:
        """The report for the terminal."""
        stored = self.stored
        lines = [f"step {stored.step}, rank {stored.rank} of {stored.world_size}: {'; '.join(stored.faults)}"]
        lines += [f"weights: {self.weights}", ""]
        if self.broken_weights:
            lines.append(f"not finite in these weights: {_named(self.broken_weights)}")
        if self.score_fault is not None:
            lines.append(f"rewards: {self.score_fault}")
        rows = [("loss", "gradients", "records")]
        for part in self.parts:
            gradients = f"not finite: {_named(part.broken_gradients)}" if part.broken_gradients else "finite"
            rows.append((f"{part.loss:.6g}", gradients, ", ".join(part.records)))
        lines += text_table(rows) if self.parts else []
        lines += ["", f"{'Everything is finite' if self.ok else 'The fault is there'} with these weights."]
        return "\n".join(lines)


def stored_config(file: Path) -> str:
    """The settings of the run that stored a batch, as YAML text.

    Raises:
        UserError: the file is no stored batch, or the run was not started from the command line.
    """
    config = StoredBatch.load(file).config
    if config is None:
        raise UserError(f"The run that stored {str(file)!r} was started from Python; give its YAML files with -c.")
    return run_settings(config)


def replay_batch(run: RunConfig, file: Path, ckpt_path: Path | None) -> BatchReport:
    """Compute loss, gradients and rewards of a stored batch again, in one process.

    Args:
        run: the run that stored it, or one to compare it with.
        file: the stored batch.
        ckpt_path: checkpoint whose weights are used; None takes the newest last.ckpt of the run, or the model that it
            began with where there is none.

    Raises:
        UserError: a file is missing or something else.
    """
    import lightning as L

    from lightning_modules.training.precision import trainer_options

    stored, settings = StoredBatch.load(file), run.settings["trainer"].as_dict()
    newest = None if ckpt_path else last_checkpoint(settings)
    given = ckpt_path if newest is None else newest.path
    if given is not None and not given.exists():
        raise UserError(f"--ckpt_path is {str(given)!r}, which does not exist (looked from {Path.cwd()}).")
    module = run.build("model")
    module.trainer = L.Trainer(
        devices=1, logger=False, enable_checkpointing=False, **trainer_options({"precision": settings.get("precision")})
    )
    module.configure_model()
    weights = f"the model that the run began with, {module.model_name_or_path}; the batch met those after step "
    if given is not None:
        trained = read_checkpoint(given)
        load_trained(module.policy, trained)
        weights = f"{given}, after step {trained.step}; the batch met those after step "
    device = module.trainer.strategy.root_device
    module.policy.to(device)
    broken = tuple(name for name, value in module.policy.named_parameters() if not value.isfinite().all())
    score_fault: str | None = None
    parts: tuple[ReplayedPart, ...] = ()
    if stored.batches:
        parts = tuple(_replayed(module, _sft_losses(module, stored, device)))
    elif all(group.completions for group in stored.groups):
        try:
            advantages = _advantages(module, stored)
            parts = tuple(_replayed(module, _rollout_losses(module, stored, advantages, device)))
        except NonFiniteScoreError as error:
            score_fault = str(error)
    else:
        parts = tuple(_replayed(module, _prompt_logits(module, stored, device)))
    return BatchReport(
        stored=stored,
        weights=f"{weights}{stored.step - 1}",
        broken_weights=broken,
        score_fault=score_fault,
        parts=parts,
    )


Losses = Iterator[tuple[tuple[str, ...], Tensor]]
"""Records and the loss of one backward pass each."""


def _replayed(module: PolicyModule, losses: Losses) -> Iterator[ReplayedPart]:
    with module.trainer.precision_plugin.forward_context():
        for records, loss in losses:
            module.policy.zero_grad()
            loss.backward()
            gradients = ((name, value.grad) for name, value in module.policy.named_parameters())
            broken = (name for name, value in gradients if value is not None and not value.isfinite().all())
            yield ReplayedPart(records=records, loss=loss.item(), broken_gradients=tuple(broken))


def _sft_losses(module: SFTModule, stored: StoredBatch, device: torch.device) -> Losses:
    """The mean negative log-probability of each micro-batch."""
    for batch in stored.batches:
        logprobs = module.policy.target_statistics(batch.to(device)).logprobs
        yield tuple(record.where for record in batch.records), -logprobs.mean()


def _advantages(module: GRPOModule, stored: StoredBatch) -> Tensor:
    """Those that the run computed; where its rewards were not finite, those of the rewards as they are now. [B, G]."""
    pairs = zip(stored.groups, stored.shuffled, strict=True)
    breakdown = module.suite.score([reward_input(group, texts) for group, texts in pairs])
    if stored.advantages is not None:
        return stored.advantages
    return group_relative_advantages(breakdown.total, module.advantage_scale)


def _rollout_losses(module: GRPOModule, stored: StoredBatch, advantages: Tensor, device: torch.device) -> Losses:
    """The loss of each group alone."""
    if module.reference is not None:
        module.reference.to(device)
    for row, group in enumerate(stored.groups):
        batch = module.policy.collate([group.prompt]).to(device)
        (micro,) = module.update.prepare(
            batch, [group], advantages[row : row + 1], mean_over_ranks=_alone, max_over_ranks=_alone
        )
        for loss in module.update.losses(micro, StepMetrics()):
            yield (group.prompt.record.where,), loss


def _prompt_logits(module: PolicyModule, stored: StoredBatch, device: torch.device) -> Losses:
    """For a rollout that could not be sampled: the mean logit after each prompt, which is finite if all are."""
    module.policy.eval()  # gradient checkpointing, in training mode, would drop the cache
    for group in stored.groups:
        logits, _ = module.policy.prefill(module.policy.collate([group.prompt]).to(device), group_size=1)
        yield (group.prompt.record.where,), logits.float().mean()


def _alone(value: Tensor) -> Tensor:
    return value


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
