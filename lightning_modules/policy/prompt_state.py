"""What a prompt leaves for its continuations: to sampling as a cache, to training as the end of a graph.

In training, completions attend to detached copies of the prompts' keys and values. The backward pass of some of the
completions can then run at once, free their activations and add to the gradients of the copies; the sums go through the
prompts' own graph in one backward pass at the end. By the chain rule the gradients are those of one graph of prompts
and completions, but of the completions only those of one pass are alive at a time.

Shapes: B prompts, P prompt tokens (longest), Q tokens of all prompts, H hidden size, Hkv key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad


class PromptState:
    """Keys and values of every layer, and the states that predict the first tokens.

    It is filled by `Policy.run_prompts`: open while the prompts go through the model, closed afterwards.

    Args:
        lengths: tokens of each of the B prompts, which follow one another in one row.
        output_weight: the output projection, which completions use and prompts do not.
    """

    def __init__(self, lengths: Sequence[int], output_weight: Tensor) -> None:
        self.lengths = list(lengths)
        self._output_weight = output_weight
        self.is_open = True
        self._made: dict[int, tuple[Tensor, ...]] = {}
        """Layer -> what it computed, [1, Hkv, Q, D] each, with the prompts' graph."""
        self._copies: dict[int, tuple[Tensor, ...]] = {}
        """The same without the graph, where gradients add up."""
        self._made_hidden: Tensor | None = None
        self._copied_hidden: Tensor | None = None

    def add(self, layer: int, *tensors: Tensor) -> None:
        """Keep what a layer computed; a layer that is computed again for its backward pass adds nothing."""
        if self.is_open:
            self._made[layer] = tensors

    def close(self, last_hidden: Tensor) -> None:
        """Cut off the graph; `last_hidden` [B, H] are the states after the prompts' last tokens."""
        self.is_open = False
        self._copies = {layer: tuple(_copy(tensor) for tensor in tensors) for layer, tensors in self._made.items()}
        self._made_hidden, self._copied_hidden = last_hidden, _copy(last_hidden)

    @property
    def last_hidden(self) -> Tensor:
        """[B, H], without the graph."""
        assert self._copied_hidden is not None, "the prompts have not gone through the model"
        return self._copied_hidden

    def of_layer(self, layer: int) -> list[tuple[Tensor, ...]]:
        """For each prompt its keys and values, [1, Hkv, P, D] each, without the graph."""
        parts = (tensor.split(self.lengths, dim=2) for tensor in self._copies[layer])
        return list(zip(*parts, strict=True))

    def padded_layers(self) -> list[tuple[Tensor, ...]]:
        """Of every layer keys and values [B, Hkv, P, D] with zeros after the shorter prompts; they are given away."""
        layers, longest = [], max(self.lengths)
        for layer in sorted(self._copies):
            self._made.pop(layer)
            rows = (tensor[0].split(self.lengths, dim=1) for tensor in self._copies.pop(layer))
            layers.append(tuple(torch.stack([pad(p, (0, 0, 0, longest - p.shape[1])) for p in row]) for row in rows))
        return layers

    def backward_loss(self) -> Tensor:
        """A scalar, zero, whose backward pass takes the gradients of the copies through the prompts.

        They are not multiplied by the scalar's own upstream gradient: what scales losses has scaled theirs already.
        """
        assert self._made_hidden is not None, "the prompts have not gone through the model"
        made = [*(tensor for tensors in self._made.values() for tensor in tensors), self._made_hidden]
        copies = [*(tensor for tensors in self._copies.values() for tensor in tensors), self.last_hidden]
        trained = [(tensor, copy) for tensor, copy in zip(made, copies, strict=True) if tensor.requires_grad]
        gradients = [torch.zeros_like(copy) if copy.grad is None else copy.grad for _, copy in trained]
        # DDP exchanges gradients in this pass and waits for every parameter to take part in it, if only with nothing.
        return _GivenGradients.apply([*gradients, None], *(tensor for tensor, _ in trained), self._output_weight)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


class _GivenGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradients, *tensors):
        ctx.gradients = gradients
        return tensors[0].new_zeros(())

    @staticmethod
    @once_differentiable  # its annotations hide the name of ctx
    def backward(ctx, _grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *ctx.gradients
