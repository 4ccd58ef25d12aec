"""A KV cache that can be rewound: preallocated, every row of the batch with its own length.

A step writes its keys and values at (row, position); whatever stands behind a row's length is hidden by the mask and
overwritten later. So taking back rejected tokens is an assignment of lengths, with nothing copied, cropped or zeroed
(a zeroed key is not a masked key: it still gets weight e⁰). It plugs into unmodified transformers models, which only
ever call `update`: give them explicit `position_ids` and a 4-D mask.
"""

import torch
from torch import Tensor


class RewindableCache:
    """Keys and values of `batch` sequences of up to `capacity` tokens, in slots allocated when a layer first writes.

    `lengths` says how many tokens of each row are valid: a list on the host, so that reading it costs nothing.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device | str = "cpu"):
        self.batch = batch
        self.capacity = capacity
        self.device = torch.device(device)
        self.lengths = [0] * batch
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._rows = torch.arange(batch, device=self.device)[:, None]
        self._slots: Tensor | slice = slice(0, 0)
        self._visible = 0

    def rewind(self, lengths: list[int]) -> None:
        """Forget what lies behind `lengths` (one per row, in tokens, at most the present ones)."""
        if any(new > old for new, old in zip(lengths, self.lengths, strict=True)):
            raise AssertionError(f"cannot rewind forward: {self.lengths} to {lengths}")
        self.lengths = list(lengths)

    def advance(self, n: int) -> tuple[Tensor, Tensor]:
        """Make room for `n` tokens in every row. Returns positions [B or 1, n] and which slots each may see,
        [B or 1, 1, n, W] bool (W: slots up to the longest row). `update` then writes to those positions.
        """
        longest = max(self.lengths) + n
        if longest > self.capacity:
            raise AssertionError(f"{longest} tokens in a cache for {self.capacity}")
        same = min(self.lengths) + n == longest
        if same:  # rows in step (always so for one sequence): plain slices
            start = longest - n
            positions = torch.arange(start, longest, device=self.device)[None]
            self._slots = slice(start, longest)
        else:
            starts = torch.tensor(self.lengths, device=self.device)[:, None]
            positions = starts + torch.arange(n, device=self.device)
            self._slots = positions
        self._visible = longest
        if same and n == 1:
            mask = torch.ones((), dtype=torch.bool, device=self.device).expand(1, 1, 1, longest)
        else:
            mask = (torch.arange(longest, device=self.device) <= positions[..., None])[:, None]
        self.lengths = [length + n for length in self.lengths]
        return positions, mask

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values, [B, H, n, D]; return all visible ones, [B, H, W, D]."""
        if layer_idx not in self._keys:
            self._keys[layer_idx] = _room(keys, self.capacity)
            self._values[layer_idx] = _room(values, self.capacity)
        all_keys, all_values = self._keys[layer_idx], self._values[layer_idx]
        if isinstance(self._slots, slice):
            all_keys[:, :, self._slots] = keys
            all_values[:, :, self._slots] = values
        else:
            all_keys[self._rows, :, self._slots] = keys.transpose(1, 2)
            all_values[self._rows, :, self._slots] = values.transpose(1, 2)
        return all_keys[:, :, : self._visible], all_values[:, :, : self._visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest row (part of what transformers asks of a cache)."""
        return max(self.lengths)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        index = torch.tensor(rows, device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        self.batch = len(rows)
        self._rows = torch.arange(self.batch, device=self.device)[:, None]
        for layers in (self._keys, self._values):
            for layer, slots in layers.items():
                layers[layer] = slots.index_select(0, index)

    def row(self, row: int) -> dict[int, tuple[Tensor, Tensor]]:
        """What is valid of one row, by layer: keys and values [H, length, D]. For looking and for tests."""
        n = self.lengths[row]
        return {i: (self._keys[i][row, :, :n], self._values[i][row, :, :n]) for i in self._keys}

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.nbytes for layers in (self._keys, self._values) for t in layers.values())


def _room(states: Tensor, capacity: int) -> Tensor:
    batch, heads, _, width = states.shape
    return states.new_zeros(batch, heads, capacity, width)
