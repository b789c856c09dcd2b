"""From scored groups to gradients: micro-batches with one denominator for the whole optimizer step.

Shapes: B prompts, G completions per prompt, S completions, C completion tokens, M merged vision tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_modules.functional.masking import masked_mean
from lightning_modules.functional.policy_loss_types import LossConfig, LossInputs, PolicyLoss, count_batch
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.reference import Reference
from lightning_modules.policy.types import PolicyBatch
from lightning_modules.rollouts.types import RolloutGroup

Reduce = Callable[[Tensor], Tensor]
"""Combines a tensor over all ranks."""


@dataclass(kw_only=True)
class MicroBatch:
    """Groups of one backward pass."""

    batch: PolicyBatch
    advantages: Tensor
    """float [S]."""
    loss_mask: Tensor
    """bool [S, C]: tokens that count; no token of a completion that is left out."""
    sampler_logprobs: Tensor
    """float [S, C], recorded when the completions were sampled."""
    denominator: float
    old_logprobs: Tensor | None = None
    """float [S, C]; those of the first inner epoch, None before it."""
    share: float = 0.0
    """Of the rank's tokens in this step: the weight of this micro-batch's metrics."""


class PolicyUpdate:
    """Computes the policy loss of rollouts.

    Args:
        policy: the policy being trained.
        reference: the frozen reference policy; None when beta is 0.
        loss: the loss and its normalizer.
        settings: its coefficients.
        temperature: of the sampling; log-probabilities are those of the softmax at it.
        max_new_tokens: limit of the sampling.
        micro_batch_groups: groups per backward pass; None takes all.
        mask_truncated: leave completions that hit the limit out of the loss (DAPO's overlong filtering).
    """

    def __init__(
        self,
        policy: Policy,
        reference: Reference | None,
        *,
        loss: PolicyLoss,
        settings: LossConfig,
        temperature: float,
        max_new_tokens: int,
        micro_batch_groups: int | None = None,
        mask_truncated: bool = False,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.loss = loss
        self.settings = settings
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.micro_batch_groups = micro_batch_groups
        self.mask_truncated = mask_truncated

    def prepare(
        self,
        groups: Sequence[RolloutGroup],
        advantages: Tensor,
        features: Tensor | None,
        *,
        device: torch.device,
        mean_over_ranks: Reduce,
        max_over_ranks: Reduce,
    ) -> list[MicroBatch]:
        """Cut a rollout into micro-batches; every rank gets equally many.

        Groups whose advantages are all zero have no policy gradient. Without a KL penalty they have no gradient at all
        and are left out of the forward passes, but not of the denominator. One is kept where all are of that kind, so
        that every rank computes and Adam sees a gradient of zero rather than none.

        Args:
            groups: B groups.
            advantages: float [B, G].
            features: [M, H] of all media where a frozen tower computed them, in the order of the groups.
            device: where to compute.
            mean_over_ranks: for the counts of the denominator.
            max_over_ranks: for the number of micro-batches.
        """
        per_group = [None] * len(groups) if features is None else self._split(features, groups)
        masks = [self._loss_mask(group) for group in groups]
        counts = count_batch(masks, max_new_tokens=self.max_new_tokens, mean_over_ranks=mean_over_ranks)
        live = [index for index in range(len(groups)) if self.settings.beta > 0 or bool(advantages[index].any())]
        live = live or [0]
        size = self.micro_batch_groups or len(groups)
        chunks = [live[start : start + size] for start in range(0, len(live), size)]
        tokens = sum(len(c.token_ids) for index in live for c in groups[index].completions)
        micro_batches = [
            self._micro_batch(
                [groups[index] for index in chunk],
                advantages[chunk],
                [per_group[index] for index in chunk],
                denominator=self.loss.denominator(counts),
                step_tokens=tokens,
                device=device,
            )
            for chunk in chunks
        ]
        wanted = int(max_over_ranks(torch.tensor(len(micro_batches), device=device)))
        idle = replace(micro_batches[-1], loss_mask=torch.zeros_like(micro_batches[-1].loss_mask), share=0.0)
        return micro_batches + [idle] * (wanted - len(micro_batches))

    def compute_loss(self, micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the loss, and scalars to log; fills in its old log-probabilities."""
        statistics = self.policy.logprobs(micro.batch, temperature=self.temperature)
        if micro.old_logprobs is None:
            micro.old_logprobs = statistics.logprobs.detach()
        reference_logprobs = None
        if self.reference is not None:
            with torch.no_grad():
                reference_logprobs = self.reference.logprobs(micro.batch, temperature=self.temperature).logprobs
        output = self.loss(
            LossInputs(
                logprobs=statistics.logprobs,
                old_logprobs=micro.old_logprobs,
                reference_logprobs=reference_logprobs,
                advantages=micro.advantages,
                mask=micro.loss_mask,
                denominator=micro.denominator,
            ),
            self.settings,
        )
        difference = (micro.sampler_logprobs - micro.old_logprobs).abs() * micro.batch.mask
        metrics = {
            "entropy": masked_mean(statistics.entropy.detach(), micro.batch.mask),
            "logprob_difference/mean": masked_mean(difference, micro.batch.mask),
            "logprob_difference/max": difference.max(),
            **output.metrics,
        }
        return output.loss, metrics

    def _micro_batch(
        self,
        groups: Sequence[RolloutGroup],
        advantages: Tensor,
        features: Sequence[Tensor | None],
        *,
        denominator: float,
        step_tokens: int,
        device: torch.device,
    ) -> MicroBatch:
        completions = [[completion.token_ids for completion in group.completions] for group in groups]
        batch = self.policy.pack([group.prompt for group in groups], completions)
        known = [feature for feature in features if feature is not None]
        if known:
            batch = replace(batch, vision_features=torch.cat(known))
        sampled = torch.cat([completion.policy_logprobs for group in groups for completion in group.completions])
        sampler_logprobs = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, sampled)
        kept = torch.cat([self._loss_mask(group).any(dim=1) for group in groups])
        return MicroBatch(
            batch=batch.to(device),
            advantages=advantages.flatten().to(device),
            loss_mask=(batch.mask & kept[:, None]).to(device),
            sampler_logprobs=sampler_logprobs.to(device),
            denominator=denominator,
            share=len(sampled) / step_tokens,
        )

    def _loss_mask(self, group: RolloutGroup) -> Tensor:
        """bool [G, longest]: tokens of the group that count."""
        lengths = torch.tensor([len(completion.token_ids) for completion in group.completions])
        if self.mask_truncated:
            lengths = lengths * torch.tensor([not completion.truncated for completion in group.completions])
        return torch.arange(max(1, int(lengths.max()))) < lengths[:, None]

    def _split(self, features: Tensor, groups: Sequence[RolloutGroup]) -> list[Tensor]:
        """Features of each group's own media."""
        merge = self.policy.family.layout.merge_size**2
        visions = [group.prompt.vision for group in groups]
        sizes = [0 if vision is None else int(vision.grid_thw.prod(dim=1).sum()) // merge for vision in visions]
        return list(features.split(sizes))


def accumulate(totals: dict[str, float], metrics: dict[str, Tensor], *, share: float) -> None:
    """Add a micro-batch's metrics to those of the step: maxima stay maxima, means are weighted by `share`."""
    for name, value in metrics.items():
        if name.endswith("/max"):
            totals[name] = max(totals.get(name, 0.0), value.item())
        else:
            totals[name] = totals.get(name, 0.0) + share * value.item()
