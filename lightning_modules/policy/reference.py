"""The reference policy: the policy as it was loaded or as it was some steps ago, frozen.

A reference is no torch module: the module that holds it neither registers nor saves its weights, and no strategy or
optimizer finds them. Who holds it places it, and saves and loads it where it cannot be made from the initial model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.fsdp import FSDPModule

from lightning_modules.policy.adapters import adapter_config, disabled_adapters
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.prompt_state import PromptState
from lightning_modules.policy.sharding import sharded_like
from lightning_modules.policy.types import CompletionStatistics, PolicyBatch
from rewards.errors import UserError

CHECKPOINT_KEY = "reference"
"""Where a Lightning checkpoint keeps the weights of a reference: by name, or as the folder that holds their shards."""


class ReferencePolicy:
    """What the policy is compared with.

    Args:
        policy: a frozen copy of the policy that trains, in evaluation mode and sharded alike; or that policy itself
            where adapters train, because with its adapters disabled it is the policy as it was loaded.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._has_adapters = adapter_config(policy.model) is not None

    def run_prompts(self, batch: PolicyBatch) -> PromptState:
        """As `Policy.run_prompts`, without gradients."""
        with self._frozen():
            return self.policy.run_prompts(batch)[0]

    def logprobs(
        self, batch: PolicyBatch, *, temperature: float, prompts: PromptState | None = None
    ) -> CompletionStatistics:
        """As `Policy.logprobs`, without gradients."""
        with self._frozen():
            return self.policy.logprobs(batch, temperature=temperature, prompts=prompts)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        # With adapters, a backward pass would recompute with them.
        with torch.no_grad(), disabled_adapters(self.policy.model) if self._has_adapters else nullcontext():
            yield

    def to(self, device: torch.device | str) -> None:
        """Move whole weights; shards stay where sharding placed them."""
        if not isinstance(self.policy, FSDPModule):
            self.policy.to(device)

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, not copied; shards as they are."""
        return {name: parameter.detach() for name, parameter in self.policy.named_parameters()}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights, whole ones or this rank's shards, from those of the same names.

        Raises:
            UserError: names or shapes are not those of this model.
        """
        own = self.weights()
        shapes, given = ({name: value.shape for name, value in some.items()} for some in (own, weights))
        if differing := {name for name, _ in shapes.items() ^ given.items()}:
            raise UserError(
                f"The reference of the checkpoint is of another model than model.model_name_or_path: {len(differing)} "
                f"weights differ in name or shape, among them {min(differing)}. Resume with the model of its run."
            )
        for name, target in own.items():
            target.copy_(sharded_like(target, weights[name]))

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the weights that a Lightning checkpoint holds.

        Raises:
            UserError: it holds none, or those of another model.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            raise UserError(
                "The checkpoint holds no reference policy, since its run kept the initial model as reference. Resume "
                "with model.reference_sync_steps: null, as in that run."
            )
        if isinstance(saved, Path):
            load_shards(self.weights(), checkpoint_id=saved)  # in place
        else:
            self.load(saved)


def check_sync(every: int | None, *, beta: float, has_adapters: bool) -> None:
    """
    Raises:
        UserError: there are no reference weights that could be replaced every so many steps.
    """
    if every is None:
        return
    given = f"model.reference_sync_steps is {every}"
    if every < 1:
        raise UserError(f"{given}; it must be >= 1, or null to keep the initial model as reference.")
    if beta == 0:
        raise UserError(f"{given}, but model.loss_config.beta is 0, so there is no reference; set one of them.")
    if has_adapters:
        raise UserError(
            f"{given}, but with model.lora the reference is the model without its adapters, which has no weights of "
            "its own. Set reference_sync_steps: null."
        )
