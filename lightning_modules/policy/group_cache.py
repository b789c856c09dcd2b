"""The key-value cache of a rollout: every prompt once, however many completions hang off it.

Shapes: B prompts, G completions per prompt, S sequences still growing, P prompt tokens, t completion tokens so far,
Hq and Hkv attention heads, R = Hq / Hkv, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.functional.masking import length_mask

FIRST_CAPACITY = 64
"""Completion tokens that room is made for at first; it doubles when it is full."""


class GroupCache:
    """Keys and values of B prompts, and of the S sequences that continue them.

    Args:
        prompts: per layer keys and values [B, Hkv, P, D], with anything finite after the shorter prompts.
        lengths: tokens of each prompt.
        group_size: G.
    """

    def __init__(self, prompts: Sequence[tuple[Tensor, ...]], lengths: Sequence[int], group_size: int) -> None:
        self.prompts = [(keys, values) for keys, values in prompts]
        device = self.prompts[0][0].device
        padded = ~length_mask(torch.tensor(lengths), max(lengths))
        self.prompt_padding = padded[:, None, None].to(device) if bool(padded.any()) else None  # [B, 1, 1, P]
        self.length = 0
        self.prompt_of_row = torch.arange(len(lengths) * group_size, device=device) // group_size  # [S]
        self._own: list[tuple[Tensor, Tensor]] = []
        self._arrange()

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append one token [S, Hkv, 1, D] to a layer; returns the sequences' own tokens [S, Hkv, t, D]."""
        if layer_idx == len(self._own):
            shape = (*key.shape[:2], FIRST_CAPACITY, key.shape[3])
            self._own.append((key.new_empty(shape), value.new_empty(shape)))
        keys, values = self._own[layer_idx]
        if self.length == keys.shape[2]:
            keys, values = (torch.cat([tensor, torch.empty_like(tensor)], dim=2) for tensor in (keys, values))
            self._own[layer_idx] = keys, values
        end = self.length + 1
        keys[:, :, self.length : end], values[:, :, self.length : end] = key, value
        if layer_idx == len(self.prompts) - 1:
            self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def skip(self, tokens: int) -> None:
        """Go from any number of own tokens to the size after `tokens` of them; for measuring memory alone."""
        while self._own[0][0].shape[2] <= tokens:
            self._own = [(keys.repeat(1, 1, 2, 1), values.repeat(1, 1, 2, 1)) for keys, values in self._own]
        self.length = max(self.length, tokens)

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences but `rows`, int64 indices into the S."""
        self._own = [(keys[rows], values[rows]) for keys, values in self._own]
        self.prompt_of_row = self.prompt_of_row[rows]
        self._arrange()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer_idx: int, scaling: float) -> Tensor:
        """Attention of one new token per sequence over its prompt and its own tokens.

        The G queries of a prompt are one block against one copy of its keys. Both parts share one softmax. Half
        precision is computed in float32, as fused kernels do inside.

        Args:
            query: [S, Hq, 1, D].
            key: [S, Hkv, t, D], own tokens.
            value: [S, Hkv, t, D].
            layer_idx: whose prompt keys to use.
            scaling: factor on the scores.

        Returns:
            [S, 1, Hq, D].
        """
        dtype = query.dtype
        precise = dtype if dtype in (torch.float32, torch.float64) else torch.float32
        prompt_key, prompt_value = (tensor.to(precise) for tensor in self.prompts[layer_idx])
        key, value = key.to(precise), value.to(precise)
        heads, repeats = key.shape[1], query.shape[1] // key.shape[1]
        grouped = (query.to(precise) * scaling).reshape(-1, heads, repeats, query.shape[3])  # [S, Hkv, R, D]

        prompt_scores = self._by_prompt(grouped) @ prompt_key.transpose(2, 3)  # [B, Hkv, slots * R, P]
        if self.prompt_padding is not None:
            prompt_scores = prompt_scores.masked_fill(self.prompt_padding, -torch.inf)
        scores = torch.cat([self._by_row(prompt_scores, repeats), grouped @ key.transpose(2, 3)], dim=-1)
        prompt_weights, own_weights = scores.softmax(dim=-1).split([prompt_key.shape[2], key.shape[2]], dim=-1)
        from_prompt = self._by_row(self._by_prompt(prompt_weights) @ prompt_value, repeats)
        output = from_prompt + own_weights @ value  # [S, Hkv, R, D]
        return output.flatten(1, 2)[:, None].to(dtype)

    def _drop_finished_prompts(self) -> None:
        kept, self.prompt_of_row = self.prompt_of_row.unique(return_inverse=True)
        if len(kept) < len(self.prompts[0][0]):
            self.prompts = [(keys[kept], values[kept]) for keys, values in self.prompts]
            if self.prompt_padding is not None:
                self.prompt_padding = self.prompt_padding[kept]

    def _arrange(self) -> None:
        """Give each prompt as many slots as its largest group has sequences left."""
        self._drop_finished_prompts()
        count = len(self.prompt_of_row)
        rows_per_prompt = torch.bincount(self.prompt_of_row, minlength=len(self.prompts[0][0]))  # [B]
        first_row = rows_per_prompt.cumsum(0) - rows_per_prompt
        self._slots = int(rows_per_prompt.max())
        rows = torch.arange(count, device=self.prompt_of_row.device)
        self._slot_of_row = self.prompt_of_row * self._slots + rows - first_row[self.prompt_of_row]  # [S]
        self._full = count == len(rows_per_prompt) * self._slots
        # Slots without a sequence repeat sequence 0; nobody reads what they compute.
        self._row_of_slot = torch.zeros(len(rows_per_prompt) * self._slots, dtype=torch.long, device=rows.device)
        self._row_of_slot[self._slot_of_row] = rows

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """[S, Hkv, R, X] -> [B, Hkv, slots * R, X]."""
        slots = rows if self._full else rows[self._row_of_slot]
        return slots.unflatten(0, (-1, self._slots)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, prompts: Tensor, repeats: int) -> Tensor:
        """[B, Hkv, slots * R, X] -> [S, Hkv, R, X]."""
        slots = prompts.unflatten(2, (self._slots, repeats)).transpose(1, 2).flatten(0, 1)
        return slots if self._full else slots[self._slot_of_row]
