"""Follows the memory of tensors that have sizes and no numbers (PyTorch's fake tensors).

Weights, activations and gradients are fake, token ids and grids are real: an operation with a fake operand gives a fake
result at once, one without is computed. So the training code runs as it is, also where it asks for lengths and ends.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class MemoryMeter(FakeTensorMode):
    """Adds up the storages of fake tensors by label. Fake tensors call it, so it need not be active as a mode."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.label: str | None = "other"
        """Of what is made now; None does not count it."""
        self.live: Counter[str] = Counter()
        """Bytes by label."""
        self.peak: Counter[str] = Counter()
        """The same when their sum was largest since `restart`."""
        self._storages: dict[int, tuple[str | None, int]] = {}
        self._nested = False

    @property
    def avoid_device_init(self) -> bool:
        """No: all is on the CPU, and the base class would look for a GPU at every operation."""
        return False

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of one operation; its new storages are counted."""
        if func is aten.nonzero.default:
            # Every fake is taken for true. Sampling asks which sequences go on, so none ends before its token limit.
            return torch.ones(args[0].shape, dtype=torch.bool).nonzero()
        if func is aten.index.Tensor:  # the length of the result is known from a real mask's numbers only
            args = (args[0], [place for index in args[1] for place in _places(index)])
        if self._nested:  # a step of how fakes compute an operation, not of how kernels do
            return super().dispatch(func, types, args, kwargs or {})
        self._nested = True
        try:
            result = super().dispatch(func, types, args, kwargs or {})
        finally:
            self._nested = False
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor) and tensor.untyped_storage()._cdata not in self._storages:
                storage = tensor.untyped_storage()
                self._add(storage._cdata, self.label, storage.nbytes())
                weakref.finalize(storage, self._drop, storage._cdata)
        return result

    def fake(self, shape: Sequence[int], dtype: torch.dtype, label: str | None) -> Tensor:
        """A fake tensor on the CPU."""
        with self, self.labeled(label):
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")

    @contextmanager
    def labeled(self, label: str | None) -> Iterator[None]:
        """Count what is made inside under this label."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Count a tensor's storage under another label from now on."""
        storage = tensor.untyped_storage()
        self._drop(storage._cdata)
        self._add(storage._cdata, label, storage.nbytes())

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.live.copy()

    def _add(self, key: int, label: str | None, size: int) -> None:
        self._storages[key] = label, size
        if label is not None:
            self.live[label] += size
            if self.live.total() > self.peak.total():
                self.peak = self.live.copy()

    def _drop(self, key: int) -> None:
        label, size = self._storages.pop(key)
        if label is not None:
            self.live[label] -= size


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    return index.nonzero(as_tuple=True) if index is not None and index.dtype == torch.bool else (index,)
