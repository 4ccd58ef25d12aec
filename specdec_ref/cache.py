"""A KV cache that can be rewound: preallocated, and with a length of its own for every row.

A step writes its keys and values at (row, position). Entries after the length of a row are masked,
and overwritten later. So rejected tokens are removed by an assignment of lengths. Nothing is
copied, cropped or zeroed. (Zeroing would not mask a key: it would still get weight e⁰.) No shape
depends on how many tokens were accepted, so a step can be recorded once and replayed. Unmodified
transformers models only call `update`. In addition they need explicit `position_ids` and a 4-D
mask.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specdec_ref.ancestry import ancestor_mask, depths

WINDOW = 128
"""Attention reads a multiple of this many slots, the smallest that holds the longest row."""


FIRST_SLOTS = 1024
"""Slots per row at the start, if the capacity is larger. The slots double whenever they are full.
"""


class RewindableCache:
    """Keys and values of `batch` sequences of up to `capacity` tokens, in slots allocated when a
    layer first writes.

    At first `allocated` slots per row exist, and more are added as rows grow. So a capacity that no
    text reaches costs no memory. `lengths` is the number of valid tokens of each row. It is a list
    on the host, so no device has to be waited for.

    Attributes of the tokens of the last `advance`, each [B, n], or [1, n] where all rows are alike:
        positions: their positions in the text.
        slot_mapping: the slots that they are written to. In a chain, slot i holds position i. In a
            tree every node has a slot of its own, but siblings have the same position.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device | str = "cpu"):
        self.batch = batch
        self.capacity = capacity
        self.allocated = min(capacity, FIRST_SLOTS)
        self.device = torch.device(device)
        self.lengths = [0] * batch
        self.rows = torch.arange(batch, device=self.device)[:, None]
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}
        self._window = 0
        self._tree_size = 0
        self.positions = self.slot_mapping = torch.empty(1, 0, dtype=torch.int64)

    def rewind(self, lengths: list[int]) -> None:
        """Forget all but the first `lengths[row]` tokens of each row. Rows cannot become longer."""
        if any(new > old for new, old in zip(lengths, self.lengths, strict=True)):
            raise AssertionError(f"cannot rewind forward: {self.lengths} to {lengths}")
        self.lengths = list(lengths)

    def advance(self, n: int) -> tuple[Tensor, Tensor]:
        """Make room for `n` tokens in every row, which `update` then writes.

        Returns their positions, [B, n], or [1, n] where all rows are equally long, and which slots
        each may see, [B or 1, 1, n, W] bool.
        """
        shortest, longest = min(self.lengths), max(self.lengths)
        if longest + n > self.capacity:
            raise AssertionError(f"{longest + n} tokens in a cache for {self.capacity}")
        if longest + n > self.allocated:
            self._grow(longest + n)
        if shortest == longest:
            self.positions = torch.arange(longest, longest + n, device=self.device)[None]
        else:
            starts = torch.tensor(self.lengths)[:, None].to(self.device, non_blocking=True)
            self.positions = starts + torch.arange(n, device=self.device)
        self.slot_mapping = self.positions
        self._window = min(self.allocated, -(-(longest + n) // WINDOW) * WINDOW)
        self.lengths = [length + n for length in self.lengths]
        slots = torch.arange(self._window, device=self.device)
        return self.positions, (slots <= self.positions[..., None])[:, None]

    def advance_tree(self, parents: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Make room for the last `n` nodes of a tree in every row, which `update` then writes.

        A tree may come in one step, or in several. `keep_path` then makes slots and positions equal
        again.

        Args:
            parents: [B, size] int64 on the host, of all nodes (see `ancestry`); −1 follows the last
                token before the tree. The first size − n nodes are in the cache already.
            n: the number of nodes to make room for.

        Returns:
            Which slots each of them may see, [B, 1, n, W] bool: the row before the tree, its
            ancestors and itself; and the position of the token in each slot, [B, 1, 1, W].
        """
        size = parents.shape[1]
        starts = torch.tensor(self.lengths)[:, None] - (size - n)
        positions = (starts + depths(parents) - 1).to(self.device)
        # Most nodes will be rejected, so the row itself stays within its capacity.
        needed = max(self.lengths) + n
        self.capacity = max(self.capacity, -(-needed // WINDOW) * WINDOW)
        _, visible = self.advance(n)
        window = visible.shape[-1]
        visible = visible.expand(self.batch, 1, n, window)
        of_tree = (starts + torch.arange(size)).to(self.device)
        ancestors = ancestor_mask(parents)[:, -n:].to(self.device)[:, None]
        visible = visible.scatter(-1, of_tree[:, None, None].expand(-1, 1, n, size), ancestors)
        of_slots = torch.arange(window, device=self.device).repeat(self.batch, 1)
        of_slots = of_slots.scatter(1, of_tree, positions)
        self.positions = positions[:, -n:]
        self._tree_size = size
        return visible, of_slots[:, None, None]

    def keep_path(self, paths: list[list[int]]) -> None:
        """Of the tree at the end of each row, keep only a path, and move it into adjacent slots.

        Args:
            paths: for each row, the indices of the path's nodes, in rising order.
        """
        starts = [length - self._tree_size for length in self.lengths]
        self.lengths = [start + len(path) for start, path in zip(starts, paths, strict=True)]
        longest = max(map(len, paths))
        # A shorter path is extended by nodes that stay in place.
        moves = [[*path, *range(len(path), longest)] for path in paths]
        to = torch.tensor(starts)[:, None] + torch.arange(longest)
        source = torch.tensor(starts)[:, None] + torch.tensor(moves)
        if torch.equal(source, to):
            return
        source, to = source.to(self.device), to.to(self.device)
        for layer in self.slots.values():
            for states in layer:
                states[self.rows, :, to] = states[self.rows, :, source]

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values, [B, H, n, D]. Returns all slots that the mask
        covers, [B, H, W, D]."""
        if layer_idx not in self.slots:
            self.slots[layer_idx] = self._room(keys), self._room(values)
        seen = self.window(layer_idx)
        for slots, new in zip(seen, (keys, values), strict=True):
            write(slots, new, self.slot_mapping, self.rows)
        return seen

    def window(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The slots of a layer that the mask of the last `advance` covers: keys and values,
        [B, H, W, D]."""
        keys, values = self.slots[layer_idx]
        return keys[:, :, : self._window], values[:, :, : self._window]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest row (part of what transformers asks of a cache)."""
        return max(self.lengths)

    def keep(self, rows: list[int]) -> None:
        """Continue with these rows only, in this order. A row that is listed twice becomes two."""
        index = torch.tensor(rows, device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        self.batch = len(rows)
        self.rows = torch.arange(self.batch, device=self.device)[:, None]
        self.slots = {
            i: (k.index_select(0, index), v.index_select(0, index))
            for i, (k, v) in self.slots.items()
        }

    def row(self, row: int) -> dict[int, tuple[Tensor, Tensor]]:
        """The valid keys and values of a row, [H, length, D], by layer. For inspection only."""
        n = self.lengths[row]
        return {
            i: (keys[row, :, :n], values[row, :, :n]) for i, (keys, values) in self.slots.items()
        }

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.nbytes for layer in self.slots.values() for t in layer)

    def _room(self, states: Tensor) -> Tensor:
        batch, heads, _, width = states.shape
        return states.new_zeros(batch, heads, self.allocated, width)

    def _grow(self, tokens: int) -> None:
        """Double the slots, or add more if `tokens` need it. This is done layer by layer, so only
        one layer at a time exists twice."""
        before, self.allocated = self.allocated, min(self.capacity, max(tokens, 2 * self.allocated))
        for layer in self.slots:
            old_keys, old_values = self.slots[layer]
            keys, values = self._room(old_keys), self._room(old_values)
            keys[:, :, :before] = old_keys
            values[:, :, :before] = old_values
            self.slots[layer] = keys, values


class FixedSlots:
    """Slots at fixed addresses, for a step that is recorded and replayed. No lengths, no windows.

    Args:
        slots: keys and values of each layer, [B, H, W, D].
        slot_mapping: where a step writes, [B or 1, n].
        rows: the indices of the rows, [B, 1].
    """

    def __init__(self, slots: dict[int, tuple[Tensor, Tensor]], slot_mapping: Tensor, rows: Tensor):
        self._slots, self._slot_mapping, self._rows = slots, slot_mapping, rows

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values, [B, H, n, D]. Returns all slots that the mask
        covers, [B, H, W, D]."""
        seen = self._slots[layer_idx]
        for slots, new in zip(seen, (keys, values), strict=True):
            write(slots, new, self._slot_mapping, self._rows)
        return seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: transformers calls this, but positions and mask do not depend on it here."""
        return 0


def store_features(
    cache: RewindableCache | FixedSlots, hidden_states: Sequence[Tensor], layers: Sequence[int]
) -> None:
    """Keep hidden states of some layers next to the keys and values of the same tokens.

    A rewind then forgets both together. Hidden states are stored as one more layer, after the last:
    as keys of a single head, with values of width 0.

    Args:
        cache: the cache, after `advance` for these tokens.
        hidden_states: one [B, n, d] for each layer, the embeddings first, as in transformers.
        layers: which of them to keep.
    """
    features = torch.cat([hidden_states[layer] for layer in layers], -1).unsqueeze(1)
    cache.update(features, features[..., :0], len(hidden_states) - 1)


def write(slots: Tensor, new: Tensor, slot_mapping: Tensor, rows: Tensor) -> None:
    """slots[row, :, slot_mapping[row]] = new[row], in place.

    Args:
        slots: [B, H, W, D].
        new: [B, H, n, D].
        slot_mapping: [B or 1, n].
        rows: [B, 1].
    """
    if slot_mapping.shape[0] == 1:
        slots.index_copy_(2, slot_mapping[0], new)
    else:
        slots[rows, :, slot_mapping] = new.transpose(1, 2)


_argument_names: dict[type[nn.Module], str] = {}


def cache_argument(model: nn.Module) -> str:
    """The name of the cache argument in a transformers model's `forward`: `cache` from 5.24 on,
    `past_key_values` before."""
    kind = type(model)
    if kind not in _argument_names:
        parameters = inspect.signature(kind.forward).parameters
        _argument_names[kind] = "cache" if "cache" in parameters else "past_key_values"
    return _argument_names[kind]
