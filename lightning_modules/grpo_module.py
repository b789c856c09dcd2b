"""Group relative policy optimization with verifiable rewards.

Shapes: B prompts, G completions per prompt, S = B * G, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from datamodules.encoding import join_vision
from datamodules.sampler import sample_seed
from datamodules.types import PromptBatch
from lightning_modules.functional.advantages import AdvantageScale, group_relative_advantages, zero_variance
from lightning_modules.functional.policy_loss_types import LossConfig
from lightning_modules.functional.policy_losses import find_loss
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.reference import CHECKPOINT_KEY, ReferencePolicy, check_sync
from lightning_modules.policy.sharding import unsharded
from lightning_modules.policy_module import PolicyModule
from lightning_modules.rollouts.sample import RolloutSample
from lightning_modules.rollouts.scoring import reward_input
from lightning_modules.rollouts.shuffled import shuffled_prompt
from lightning_modules.rollouts.types import RolloutGroup, SamplingConfig
from lightning_modules.training.grpo_metrics import TOKENS, add_redraws, add_trained_groups, rollout_metrics
from lightning_modules.training.step_metrics import StepMetrics
from lightning_modules.training.strategies import gathered_update, gradient_sync, whole_norm
from lightning_modules.training.update import RANK_LOSSES, PolicyUpdate
from rewards.base import Reward
from rewards.errors import UserError
from rewards.suite import RewardSuite, SuiteConfig
from rewards.types import RewardBreakdown

ShuffledCompletions = list[tuple[str, ...] | None]
"""Per group what was sampled on its frames in shuffled order."""

SHUFFLED_ATTEMPT = -1
"""Tells the seeds of shuffled rollouts from those of the first draw (0) and of redraws (1, 2, ...)."""


class GRPOModule(PolicyModule):
    """Samples G completions per prompt, scores them and raises the probability of the better ones.

    Optimization is manual, since one rollout feeds several backward passes: the Trainer's gradient_clip_val and
    accumulate_grad_batches do not apply, `max_grad_norm` and `micro_batch_groups` take their place.

    Args:
        rewards: the reward suite, each with its weight and gate.
        suite: how rewards are normalized and what becomes of truncated completions.
        group_size: completions per prompt, G.
        sampling: how completions are drawn in training.
        loss: name of the policy loss: grpo, dr_grpo, dapo, bnpo, gspo or cispo.
        loss_config: its coefficients; beta > 0 needs a reference: a frozen copy or, with lora, the adapters disabled.
        advantage_scale: what advantages are divided by: the standard deviation of their group, of the batch, or none.
        inner_epochs: passes over each rollout.
        micro_batch_groups: groups whose prompts are computed together; null takes the whole batch.
        micro_batch_completions: completions per backward pass, so that memory does not grow with the group; the prompts
            are computed once all the same. Null takes all of the micro-batch in one pass, with its prompts; "auto" the
            most that fit, as `check model` estimates (`python cli.py fit` alone resolves it).
        mask_truncated: leave completions that hit the token limit out of the loss.
        max_resamples: how often a group whose rewards all agree is drawn again.
        max_grad_norm: gradients are scaled down to this norm.
        reference_sync_steps: optimizer steps after which the reference becomes the policy as it is, again and again;
            null keeps the initial model.
        kwargs: the arguments of `PolicyModule`.
    """

    train_format = "prompts"
    update: PolicyUpdate
    """Made by `configure_model`."""

    def __init__(
        self,
        rewards: list[Reward],
        suite: SuiteConfig = SuiteConfig(),  # noqa: B008 - frozen, and its fields show in --help
        group_size: int = 8,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 - likewise
        loss: str = "grpo",
        loss_config: LossConfig = LossConfig(),  # noqa: B008 - likewise
        advantage_scale: AdvantageScale = "group",
        inner_epochs: int = 1,
        micro_batch_groups: int | None = None,
        micro_batch_completions: int | Literal["auto"] | None = None,
        mask_truncated: bool = False,
        max_resamples: int = 0,
        max_grad_norm: float = 1.0,
        reference_sync_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False
        check_sync(reference_sync_steps, beta=loss_config.beta, has_adapters=self.lora is not None)
        _check_arguments(
            group_size, inner_epochs, micro_batch_groups, micro_batch_completions, max_resamples, max_grad_norm
        )
        self.loss = find_loss(loss, loss_config)
        self.suite = RewardSuite(rewards, suite)
        self.group_size = group_size
        self.sampling = sampling
        self.loss_config = loss_config
        self.advantage_scale: AdvantageScale = advantage_scale
        self.inner_epochs = self.steps_per_batch = inner_epochs
        self.micro_batch_groups = micro_batch_groups
        self.micro_batch_completions: int | Literal["auto"] | None = micro_batch_completions
        self.mask_truncated = mask_truncated
        self.max_resamples = max_resamples
        self.max_grad_norm = max_grad_norm
        self.reference_sync_steps = reference_sync_steps
        self.reference: ReferencePolicy | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            for reward in self.suite.rewards.values():
                reward.prepare()

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is None and self.loss_config.beta > 0:
            self.reference = ReferencePolicy(self.policy if self.lora is not None else self._frozen_copy())
        if self.micro_batch_completions == "auto":
            raise UserError(
                "model.micro_batch_completions is auto, which `python cli.py fit` replaces by a number first. "
                "In a program of your own, call lightning_modules.memory.slices.settle_slices first, or give a number."
            )
        self.update = PolicyUpdate(
            self.policy,
            self.reference,
            loss=self.loss,
            config=self.loss_config,
            temperature=self.sampling.temperature,
            max_new_tokens=self.sampling.max_new_tokens,
            micro_batch_groups=self.micro_batch_groups,
            micro_batch_completions=self.micro_batch_completions,
            mask_truncated=self.mask_truncated,
        )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.reference is not None:
            self.reference.to(self.device)

    def on_fit_end(self) -> None:
        if self.reference is not None:
            self.reference.to("cpu")

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.guard.watch_prompts(batch.prompts)
        with self.guard.noting_faults(), unsharded(self.policy):
            with self.timer.phase("rollout"):
                batch = self.policy.with_frozen_features(batch)
                groups = self._sample(batch, self._rollout_seeds(batch))
                shuffled = self._sample_shuffled(batch)
                self.guard.watch_rollout(groups, shuffled)
            with self.timer.phase("reward"):
                breakdown = self._score(groups, shuffled)
            metrics = rollout_metrics(groups, breakdown)
            groups, breakdown, redrawn = self._redraw(batch, groups, breakdown, shuffled)
            if self.max_resamples > 0:
                add_redraws(metrics, breakdown, redrawn)
        if not self.guard.allows(self):
            self._take_empty_steps()
            return
        all_rewards = self.trainer.strategy.all_gather(breakdown.total.to(self.device)).cpu()
        advantages = group_relative_advantages(breakdown.total, self.advantage_scale, all_rewards=all_rewards)
        add_trained_groups(metrics, groups, advantages)
        with self.timer.phase("update"):
            first_step = self._update(batch, groups, advantages, metrics)
        self.engine.sync_weights()
        self._sync_reference()
        self.last_rollouts = RolloutSample(groups=groups, breakdown=breakdown, advantages=advantages)
        self._log_step(metrics, first_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # The initial model can be loaded again.
        if self.reference is not None and self.reference_sync_steps is not None:
            checkpoint[CHECKPOINT_KEY] = self.reference.weights()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.reference is not None and self.reference_sync_steps is not None:
            self.reference.restore(checkpoint)

    def _frozen_copy(self) -> Policy:
        frozen = self.load_policy().requires_grad_(False).eval()
        return self.sharded(frozen)  # frozen before, because sharding depends on what trains

    def _rollout_seeds(self, batch: PromptBatch, attempt: int = 0) -> list[int]:
        """One seed per prompt, from step, record and attempt alone: ranks and batches do not matter."""
        step = self.global_step + 1
        return [sample_seed(self.seed, step, prompt.record.problem_id, attempt) for prompt in batch.prompts]

    def _sample(self, batch: PromptBatch, seeds: Sequence[int]) -> list[RolloutGroup]:
        return self.engine.generate(batch, self.sampling, group_size=self.group_size, seeds=seeds)

    def _sample_shuffled(self, batch: PromptBatch) -> ShuffledCompletions:
        """Completions for the frames of videos in shuffled order, where a reward needs them."""
        fraction = max(reward.shuffled_fraction for reward in self.suite.rewards.values())
        places = [i for i, prompt in enumerate(batch.prompts) if prompt.record.data_type == "video"]
        completions: ShuffledCompletions = [None] * len(batch)
        if fraction == 0 or not places:
            return completions
        seeds = self._rollout_seeds(batch, SHUFFLED_ATTEMPT)
        geometry = self.policy.family.geometry
        prompts = [shuffled_prompt(batch.prompts[i], geometry, seeds[i]) for i in places]
        media = join_vision([prompt.vision for prompt in prompts])
        assert media is not None, "every video has patches"
        # Tokens, grids and so positions are those of the frames in order; pixels and their features are not.
        shuffled = replace(batch.select(places), prompts=prompts, vision=media.to(self.device), vision_features=None)
        count = max(1, round(fraction * self.group_size))
        groups = self.engine.generate(shuffled, self.sampling, group_size=count, seeds=[seeds[i] for i in places])
        for place, group in zip(places, groups, strict=True):
            completions[place] = tuple(completion.text for completion in group.completions)
        return completions

    def _score(self, groups: Sequence[RolloutGroup], shuffled: ShuffledCompletions) -> RewardBreakdown:
        return self.suite.score([reward_input(group, texts) for group, texts in zip(groups, shuffled, strict=True)])

    def _redraw(
        self,
        batch: PromptBatch,
        groups: list[RolloutGroup],
        breakdown: RewardBreakdown,
        shuffled: ShuffledCompletions,
    ) -> tuple[list[RolloutGroup], RewardBreakdown, int]:
        """Draw groups whose rewards all agree again, at most `max_resamples` times; counts the groups drawn."""
        redrawn = 0
        for attempt in range(1, self.max_resamples + 1):
            stale = zero_variance(breakdown.total).nonzero().flatten().tolist()
            if not stale:
                break
            again = batch.select(stale)
            with self.timer.phase("rollout"):
                fresh = self._sample(again, self._rollout_seeds(again, attempt))
            for index, group in zip(stale, fresh, strict=True):
                groups[index] = group
            with self.timer.phase("reward"):
                breakdown = self._score(groups, shuffled)
            redrawn += len(stale)
        return groups, breakdown, redrawn

    def _update(
        self, batch: PromptBatch, groups: Sequence[RolloutGroup], advantages: Tensor, metrics: StepMetrics
    ) -> dict[str, float]:
        """Take `inner_epochs` optimizer steps on one rollout; adds to `metrics` and returns what to log of the first.

        What is returned is the same on all ranks.
        """
        strategy, (optimizer, scheduler) = self.trainer.strategy, self._optimizer_and_scheduler()
        micro_batches = self.update.prepare(
            batch,
            groups,
            advantages,
            mean_over_ranks=lambda counts: strategy.reduce(counts.to(self.device), reduce_op="mean"),
            max_over_ranks=lambda count: strategy.reduce(count, reduce_op="max"),
        )
        logged: dict[str, float] = {}
        for epoch in range(self.inner_epochs):
            optimizer.zero_grad()
            losses: list[Tensor] = []
            passes, logs = (
                sum(micro.backward_passes for micro in micro_batches),
                metrics if epoch == 0 else StepMetrics(),
            )
            with gathered_update(strategy):
                for loss in chain.from_iterable(self.update.losses(micro, logs) for micro in micro_batches):
                    with gradient_sync(strategy, last=len(losses) + 1 == passes):
                        self.manual_backward(loss)
                    losses.append(loss.detach())
            norm = whole_norm(clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)).item()
            if epoch == 0:
                logged = {"train/grad_norm": norm, "train/lr": self.learning_rate}
            loss_sum = torch.stack(losses).sum().item()
            if not self.guard.allows(self, loss=loss_sum, grad_norm=norm, advantages=advantages):
                optimizer.zero_grad()  # to none at all: a step without gradients changes nothing
            optimizer.step()
            scheduler.step()
        return logged

    def _take_empty_steps(self) -> None:
        """Pass over a rollout without training on it, in as many steps as it would have taken."""
        optimizer, scheduler = self._optimizer_and_scheduler()
        optimizer.zero_grad()
        for _ in range(self.inner_epochs):
            optimizer.step()
            scheduler.step()
        self._sync_reference()
        self.log_skipped()
        self.log_seconds(self.timer.end_step(rest="update"))

    def _optimizer_and_scheduler(self) -> tuple[LightningOptimizer, LambdaLR]:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer) and isinstance(scheduler, LambdaLR), "see configure_optimizers"
        return optimizer, scheduler

    def _sync_reference(self) -> None:
        every, before = self.reference_sync_steps, self.global_step - self.inner_epochs
        if self.reference is not None and every is not None and self.global_step // every > before // every:
            self.reference.load(dict(self.policy.named_parameters()))

    def _log_step(self, metrics: StepMetrics, first_step: dict[str, float]) -> None:
        seconds = self.timer.end_step(rest="update")
        values = metrics.reduced(self.trainer.strategy)
        self.log("train/tokens_per_second", values.pop(TOKENS) / seconds["step"])
        self.log("train/loss", values.pop(RANK_LOSSES) / self.trainer.world_size)
        self.log_dict({**values, **first_step})
        self.log_skipped()
        self.log_seconds(seconds)
        self.log("reward", values["train/reward/mean"], prog_bar=True, logger=False)


def _check_arguments(
    group_size: int,
    inner_epochs: int,
    micro_batch_groups: int | None,
    micro_batch_completions: int | Literal["auto"] | None,
    max_resamples: int,
    max_grad_norm: float,
) -> None:
    checks = {
        "group_size": (group_size, group_size >= 2, ">= 2, because advantages compare the completions of a group"),
        "inner_epochs": (inner_epochs, inner_epochs >= 1, ">= 1"),
        "micro_batch_groups": (
            micro_batch_groups,
            micro_batch_groups is None or micro_batch_groups >= 1,
            ">= 1, or null for all groups",
        ),
        "micro_batch_completions": (
            micro_batch_completions,
            micro_batch_completions in (None, "auto") or int(micro_batch_completions) >= 1,
            ">= 1, auto, or null for all completions of the groups and their prompts in one pass",
        ),
        "max_resamples": (max_resamples, max_resamples >= 0, ">= 0 (0 draws every group once)"),
        "max_grad_norm": (max_grad_norm, max_grad_norm > 0, "> 0"),
    }
    for name, (value, valid, allowed) in checks.items():
        if not valid:
            raise UserError(f"model.{name} is {value}; it must be {allowed}.")
