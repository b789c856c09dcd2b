"""From scored groups to gradients: micro-batches with one denominator for the whole optimizer step.

Shapes: B prompts, G completions per prompt, S completions, C completion tokens, M merged vision tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datamodules.types import PromptBatch
from lightning_modules.functional.masking import length_mask, masked_mean
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, PolicyLoss, count_batch
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.prompt_state import PromptState
from lightning_modules.policy.reference import ReferencePolicy
from lightning_modules.policy.types import PolicyBatch
from lightning_modules.rollouts.types import RolloutGroup
from lightning_modules.training.step_metrics import StepMetrics

Reduce = Callable[[Tensor], Tensor]
"""Combines a tensor over all ranks."""

RANK_LOSSES = "rank_losses"
"""The losses of all ranks, added up; their denominators are means per rank, so the loss of the step is their mean."""


@dataclass(kw_only=True)
class Slice:
    """Completions of one backward pass."""

    batch: PolicyBatch
    advantages: Tensor
    """float [S]."""
    loss_mask: Tensor
    """bool [S, C]: tokens that count, none of a completion that is left out."""
    sampler_logprobs: Tensor
    """float [S, C], recorded when the completions were sampled."""
    denominator: float
    idle: bool = False
    """It only keeps other ranks company: neither loss nor metrics."""
    old_logprobs: Tensor | None = None
    """float [S, C]; those of the first inner epoch, None before it."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Groups whose prompts are computed together."""

    prompts: PolicyBatch | None
    """Their row, where slices continue it; None where one slice holds prompts and completions."""
    slices: list[Slice]

    @property
    def backward_passes(self) -> int:
        return len(self.slices) + (self.prompts is not None)


class PolicyUpdate:
    """Computes the policy loss of rollouts.

    Args:
        policy: the policy being trained.
        reference: the frozen reference policy; None when beta is 0.
        loss: the loss and its normalizer.
        config: its coefficients.
        temperature: of the sampling; log-probabilities are those of the softmax at it.
        max_new_tokens: limit of the sampling.
        micro_batch_groups: groups whose prompts are computed together; None takes all.
        micro_batch_completions: completions per backward pass, after which the prompts have one of their own; None
            takes prompts and completions in one.
        mask_truncated: leave completions that hit the limit out of the loss (DAPO's overlong filtering).
    """

    def __init__(
        self,
        policy: Policy,
        reference: ReferencePolicy | None,
        *,
        loss: PolicyLoss,
        config: LossConfig,
        temperature: float,
        max_new_tokens: int,
        micro_batch_groups: int | None = None,
        micro_batch_completions: int | None = None,
        mask_truncated: bool = False,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.loss = loss
        self.config = config
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.micro_batch_groups = micro_batch_groups
        self.micro_batch_completions = micro_batch_completions
        self.mask_truncated = mask_truncated

    def prepare(
        self,
        batch: PromptBatch,
        groups: Sequence[RolloutGroup],
        advantages: Tensor,
        *,
        mean_over_ranks: Reduce,
        max_over_ranks: Reduce,
    ) -> list[MicroBatch]:
        """Cut a rollout into micro-batches; every rank gets equally many.

        Groups whose advantages are all zero have no policy gradient. Without a KL penalty they have no gradient at all
        and are left out of the forward passes, but not of the denominator. One is kept where all are of that kind, so
        that every rank computes and Adam sees a gradient of zero rather than none.

        Args:
            batch: the B prompts of the rollout, on the device, with their positions and media.
            groups: B groups, in the order of their prompts.
            advantages: float [B, G].
            mean_over_ranks: for the counts of the denominator.
            max_over_ranks: for the number of micro-batches.
        """
        masks = [self._loss_mask(group) for group in groups]
        counts = count_batch(masks, max_new_tokens=self.max_new_tokens, mean_over_ranks=mean_over_ranks)
        live = [index for index in range(len(groups)) if self.config.beta > 0 or bool(advantages[index].any())]
        live = live or [0]
        size = self.micro_batch_groups or len(groups)
        micro_batches = [
            self._micro_batch(
                batch.select(chunk),
                [groups[index] for index in chunk],
                advantages[chunk],
                kept=torch.cat([masks[index].any(dim=1) for index in chunk]),
                denominator=self.loss.denominator(counts),
            )
            for chunk in (live[start : start + size] for start in range(0, len(live), size))
        ]
        device = batch.input_ids.device
        wanted = int(max_over_ranks(torch.tensor(len(micro_batches), device=device)))
        while len(micro_batches) < wanted:
            micro_batches.append(replace(micro_batches[-1], slices=[_idle(part) for part in micro_batches[-1].slices]))
        if self.micro_batch_completions is not None:
            slices = max_over_ranks(torch.tensor([len(micro.slices) for micro in micro_batches], device=device))
            for micro, count in zip(micro_batches, slices.tolist(), strict=True):
                micro.slices.extend([_idle(micro.slices[-1])] * (count - len(micro.slices)))
        return micro_batches

    def losses(self, micro: MicroBatch, metrics: StepMetrics) -> Iterator[Tensor]:
        """The losses of a micro-batch, summands of the step's, one for each of its backward passes.

        Run each backward before asking for the next. What there is to log is added to `metrics`, and the old
        log-probabilities of the slices are filled in.
        """
        if micro.prompts is None:
            for part in micro.slices:
                yield self._loss(part, metrics, None, None)
            return
        prompts, _ = self.policy.run_prompts(micro.prompts)
        reference_prompts = None if self.reference is None else self.reference.run_prompts(micro.prompts)
        for part in micro.slices:
            yield self._loss(part, metrics, prompts, reference_prompts)
        yield prompts.backward_loss()

    def _loss(
        self, part: Slice, metrics: StepMetrics, prompts: PromptState | None, reference_prompts: PromptState | None
    ) -> Tensor:
        statistics = self.policy.logprobs(part.batch, temperature=self.temperature, prompts=prompts)
        if part.old_logprobs is None:
            part.old_logprobs = statistics.logprobs.detach()
        reference_logprobs = None
        if self.reference is not None:
            reference_logprobs = self.reference.logprobs(
                part.batch, temperature=self.temperature, prompts=reference_prompts
            ).logprobs
        output = self.loss(
            LossInputs(
                logprobs=statistics.logprobs,
                old_logprobs=part.old_logprobs,
                reference_logprobs=reference_logprobs,
                advantages=part.advantages,
                mask=part.loss_mask,
                denominator=part.denominator,
            ),
            self.config,
        )
        metrics.add_count(RANK_LOSSES, output.loss)
        if not part.idle:
            difference = (part.sampler_logprobs - part.old_logprobs).abs() * part.batch.mask
            metrics.add_mean("train/entropy", masked_mean(statistics.entropy, part.batch.mask))
            metrics.add_mean("train/logprob_difference/mean", masked_mean(difference, part.batch.mask))
            metrics.add_maximum("train/logprob_difference/max", difference.max())
            for name, mean in output.metrics.items():
                metrics.add_mean(f"train/{name}", mean)
        return output.loss

    def _micro_batch(
        self,
        prompts: PromptBatch,
        groups: Sequence[RolloutGroup],
        advantages: Tensor,
        *,
        kept: Tensor,
        denominator: float,
    ) -> MicroBatch:
        completions = [(index, completion) for index, group in enumerate(groups) for completion in group.completions]
        in_slices = self.micro_batch_completions is not None
        size = self.micro_batch_completions or len(completions)
        slices = []
        for chosen in (slice(start, start + size) for start in range(0, len(completions), size)):
            members = [
                [each.token_ids for owner, each in completions[chosen] if owner == i] for i in range(len(groups))
            ]
            part = self.policy.pack(prompts, members, prompts_in_row=not in_slices)
            mask, device = part.mask, part.mask.device
            sampled = torch.cat([completion.policy_logprobs for _, completion in completions[chosen]])
            slices.append(
                Slice(
                    batch=part,
                    advantages=advantages.flatten()[chosen].to(device),
                    loss_mask=mask & kept[chosen, None].to(device),
                    sampler_logprobs=torch.zeros(mask.shape, device=device).masked_scatter(mask, sampled.to(device)),
                    denominator=denominator,
                )
            )
        return MicroBatch(prompts=self.policy.pack(prompts, [()] * len(groups)) if in_slices else None, slices=slices)

    def _loss_mask(self, group: RolloutGroup) -> Tensor:
        """bool [G, longest]: tokens of the group that count."""
        lengths = torch.tensor([len(completion.token_ids) for completion in group.completions])
        if self.mask_truncated:
            lengths = lengths * torch.tensor([not completion.truncated for completion in group.completions])
        return length_mask(lengths, max(1, int(lengths.max())))


def _idle(part: Slice) -> Slice:
    return replace(part, loss_mask=torch.zeros_like(part.loss_mask), idle=True)
