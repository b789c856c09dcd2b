"""Group relative policy optimisation with verifiable rewards.

Shapes: B prompts, G completions per prompt, S = B * G, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.sampler import sample_seed
from datamodules.types import PromptBatch
from lightning_modules.functional.advantages import AdvantageScale, group_relative_advantages
from lightning_modules.functional.masking import masked_mean
from lightning_modules.functional.policy_losses import LOSSES, LossInputs, LossSettings
from lightning_modules.grpo_metrics import rollout_metrics, token_count
from lightning_modules.phase_timer import PhaseTimer
from lightning_modules.policy import reference as reference_policy
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.types import PolicyBatch
from lightning_modules.policy_module import PolicyModule
from lightning_modules.rollouts.sample import RolloutSample
from lightning_modules.rollouts.scoring import reward_input
from lightning_modules.rollouts.types import RolloutGroup, SamplingConfig
from rewards.base import Reward
from rewards.suite import RewardSuite


class GRPOModule(PolicyModule):
    """Samples G completions per prompt, scores them and raises the probability of the better ones.

    Optimisation is manual, since one rollout feeds several backward passes: the Trainer's gradient_clip_val and
    accumulate_grad_batches do not apply, `max_grad_norm` and `micro_batch_groups` take their place.

    Args:
        rewards: the reward suite, each with its weight and gate.
        group_size: completions per prompt, G.
        sampling: how completions are drawn in training.
        loss: name of the policy loss.
        loss_settings: its coefficients; beta > 0 loads a frozen reference policy.
        advantage_scale: what advantages are divided by: the standard deviation of their group, of the batch, or none.
        inner_epochs: passes over each rollout.
        micro_batch_groups: groups per backward pass; None takes the whole batch.
        max_grad_norm: gradients are scaled down to this norm.
        kwargs: the arguments of `PolicyModule`.
    """

    def __init__(
        self,
        rewards: list[Reward],
        group_size: int = 8,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 - frozen, and its fields show in --help
        loss: str = "grpo",
        loss_settings: LossSettings = LossSettings(),  # noqa: B008 - likewise
        advantage_scale: AdvantageScale = "group",
        inner_epochs: int = 1,
        micro_batch_groups: int | None = None,
        max_grad_norm: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False
        _check_arguments(group_size, loss, inner_epochs, micro_batch_groups, max_grad_norm)
        self.suite = RewardSuite(rewards)
        self.group_size = group_size
        self.sampling = sampling
        self.loss_function = LOSSES[loss]
        self.loss_settings = loss_settings
        self.advantage_scale: AdvantageScale = advantage_scale
        self.inner_epochs = inner_epochs
        self.micro_batch_groups = micro_batch_groups
        self.max_grad_norm = max_grad_norm
        self.reference: Policy | None = None
        self.last_rollouts: RolloutSample | None = None
        self.timer = PhaseTimer()

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is None and self.loss_settings.beta > 0:
            self.reference = reference_policy.frozen(self.load_policy())

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        self.timer.begin_step()

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        if not isinstance(batch, PromptBatch):
            raise ValueError(
                f"GRPOModule was given a {type(batch).__name__} to train on; set data.init_args.train_format: prompts."
            )
        with self.timer.phase("rollout"):
            groups = self.engine.generate(
                batch, self.sampling, group_size=self.group_size, seeds=self._rollout_seeds(batch)
            )
        with self.timer.phase("reward"):
            breakdown = self.suite.score([reward_input(group) for group in groups])
        advantages = group_relative_advantages(breakdown.total, self.advantage_scale)
        with self.timer.phase("update"):
            update_metrics = self._update(groups, advantages)
        self.engine.sync_weights()
        self.last_rollouts = RolloutSample(groups=groups, breakdown=breakdown, advantages=advantages)
        self._log_step({**rollout_metrics(groups, breakdown, advantages), **update_metrics}, token_count(groups))

    def on_validation_end(self) -> None:
        self.timer.pause()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        reference_policy.drop_from_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        reference_policy.restore_in_checkpoint(checkpoint, self.reference)

    def total_optimizer_steps(self) -> int:
        """Every batch makes `inner_epochs` optimizer steps; trainer.max_steps counts those."""
        limit, batches = self.trainer.max_steps, super().total_optimizer_steps()
        if batches < 0 or batches == limit:
            return batches
        return min(batches * self.inner_epochs, limit) if limit > 0 else batches * self.inner_epochs

    def _rollout_seeds(self, batch: PromptBatch) -> list[int]:
        """One seed per prompt, from the step and the record alone: ranks and batches do not matter."""
        return [sample_seed(self.seed, self.global_step + 1, prompt.record.problem_id) for prompt in batch.prompts]

    def _update(self, groups: Sequence[RolloutGroup], advantages: Tensor) -> dict[str, float]:
        """Take `inner_epochs` optimizer steps on one rollout; returns what to log of the first."""
        optimizer = self.optimizers()
        micro_batches = self._micro_batches(groups, advantages)
        old_logprobs: list[Tensor | None] = [None] * len(micro_batches)
        metrics: dict[str, float] = {}
        for epoch in range(self.inner_epochs):
            optimizer.zero_grad()
            totals: dict[str, float] = {}
            for index, (batch, sampler_logprobs, batch_advantages) in enumerate(micro_batches):
                old, micro_metrics = self._backward(
                    batch, old_logprobs[index], sampler_logprobs, batch_advantages, len(groups)
                )
                old_logprobs[index] = old
                _accumulate(totals, micro_metrics, share=len(batch_advantages) / advantages.numel())
            norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            learning_rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            self.lr_schedulers().step()
            if epoch == 0:
                metrics = {**totals, "train/grad_norm": norm.item(), "train/lr": learning_rate}
        return metrics

    def _micro_batches(
        self, groups: Sequence[RolloutGroup], advantages: Tensor
    ) -> list[tuple[PolicyBatch, Tensor, Tensor]]:
        """(packed groups, the sampler's log-probabilities [S, C], advantages [S]) per backward pass."""
        size = self.micro_batch_groups or len(groups)
        batches = []
        for start in range(0, len(groups), size):
            part = groups[start : start + size]
            packed = self.policy.pack(
                [group.prompt for group in part],
                [[completion.token_ids for completion in group.completions] for group in part],
            )
            sampled = torch.cat([completion.policy_logprobs for group in part for completion in group.completions])
            sampler_logprobs = torch.zeros(packed.mask.shape).masked_scatter(packed.mask, sampled)
            batches.append(
                (
                    packed.to(self.device),
                    sampler_logprobs.to(self.device),
                    advantages[start : start + size].flatten().to(self.device),
                )
            )
        return batches

    def _backward(
        self,
        batch: PolicyBatch,
        old_logprobs: Tensor | None,
        sampler_logprobs: Tensor,
        advantages: Tensor,
        step_groups: int,
    ) -> tuple[Tensor, dict[str, float]]:
        """Add one micro-batch to the gradient; returns the old log-probabilities and what to log."""
        statistics = self.policy.logprobs(batch, temperature=self.sampling.temperature)
        if old_logprobs is None:
            old_logprobs = statistics.logprobs.detach()
        reference_logprobs = None
        if self.reference is not None:
            with torch.no_grad():
                reference_logprobs = self.reference.logprobs(batch, temperature=self.sampling.temperature).logprobs
        output = self.loss_function(
            LossInputs(
                logprobs=statistics.logprobs,
                old_logprobs=old_logprobs,
                reference_logprobs=reference_logprobs,
                advantages=advantages,
                mask=batch.mask,
                denominator=step_groups * self.group_size,
            ),
            self.loss_settings,
        )
        self.manual_backward(output.loss)
        difference = (sampler_logprobs - old_logprobs).abs() * batch.mask
        metrics = {
            "train/loss": output.loss.detach() * step_groups * self.group_size / len(advantages),
            "train/entropy": masked_mean(statistics.entropy.detach(), batch.mask),
            "train/logprob_difference/mean": masked_mean(difference, batch.mask),
            "train/logprob_difference/max": difference.max(),
            **{f"train/{name}": value for name, value in output.metrics.items()},
        }
        return old_logprobs, {name: value.item() for name, value in metrics.items()}

    def _log_step(self, metrics: dict[str, float], tokens: int) -> None:
        seconds = self.timer.end_step(rest="update")
        self.log_dict(metrics, sync_dist=True)
        self.log_dict({f"seconds/{phase}": value for phase, value in seconds.items()})
        self.log("train/tokens_per_second", tokens * self.trainer.world_size / seconds["step"])
        self.log("reward", metrics["train/reward/mean"], prog_bar=True, logger=False, sync_dist=True)


def _accumulate(totals: dict[str, float], metrics: dict[str, float], *, share: float) -> None:
    """Add a micro-batch's metrics to those of the step: maxima stay maxima, the rest is averaged."""
    for name, value in metrics.items():
        if name.endswith("/max"):
            totals[name] = max(totals.get(name, value), value)
        else:
            totals[name] = totals.get(name, 0.0) + share * value


def _check_arguments(
    group_size: int, loss: str, inner_epochs: int, micro_batch_groups: int | None, max_grad_norm: float
) -> None:
    if group_size < 2:
        raise ValueError(
            f"model.group_size is {group_size}; advantages compare the completions of a group, so it must be >= 2."
        )
    if loss not in LOSSES:
        raise ValueError(f"model.loss is {loss!r}; there are {', '.join(map(repr, LOSSES))}.")
    if inner_epochs < 1:
        raise ValueError(f"model.inner_epochs is {inner_epochs}; it must be >= 1.")
    if micro_batch_groups is not None and micro_batch_groups < 1:
        raise ValueError(f"model.micro_batch_groups is {micro_batch_groups}; it must be >= 1, or null for all groups.")
    if max_grad_norm <= 0:
        raise ValueError(f"model.max_grad_norm is {max_grad_norm}; it must be > 0.")
