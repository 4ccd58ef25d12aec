"""Steps of a feature head, recorded on a CPU like the steps of a model (see `trace`)."""

from typing import Any

from torch import Tensor

from specdec_ref.cache import FixedSlots, RewindableCache
from specdec_ref.fast.packing import Packed
from specdec_ref.fast.trace import model_state, packed_weights, replay


class PlainHeadSteps:
    """Runs the steps of a head without recording.

    Args:
        head: a `FeatureHead`.
    """

    def __init__(self, head: Any):
        self.head = head

    def hidden(
        self, states: Tensor, tokens: Tensor, mask: Tensor, cache: RewindableCache
    ) -> Tensor:
        """The layer's output, as in `FeatureHead.forward`. Call `advance` of the cache before."""
        output: Tensor = self.head(states, tokens, cache.positions, mask, cache)
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [B, n, V]."""
        scores: Tensor = self.head.logits(hidden)
        return scores


class RecordedHeadSteps(PlainHeadSteps):
    """Records a step once its shape has occurred often, then replays it."""

    def __init__(self, head: Any):
        super().__init__(head)
        self.state = model_state(head)

    def hidden(
        self, states: Tensor, tokens: Tensor, mask: Tensor, cache: RewindableCache
    ) -> Tensor:
        if not cache.slots:
            return super().hidden(states, tokens, mask, cache)
        weights, places = packed_weights(self.head, self.state, len(tokens))

        def step(
            states: Tensor,
            tokens: Tensor,
            positions: Tensor,
            slot_mapping: Tensor,
            mask: Tensor,
            rows: Tensor,
            *keys_values_weights: Tensor,
        ) -> Tensor:
            keys, values, *packed = keys_values_weights
            slots = FixedSlots({0: (keys, values)}, slot_mapping, rows)
            with Packed(tuple(packed), places):
                output: Tensor = self.head(states, tokens, positions, mask, slots)
            return output

        where = (cache.positions, cache.slot_mapping)
        inputs = (states, tokens, *where, mask, cache.rows, *cache.window(0), *weights)
        shape = ("hidden", tokens.shape, *(w.shape for w in where), states.dtype, self.state)
        return replay(self.head, shape, step, inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        weights, places = packed_weights(self.head, self.state, len(hidden))

        def step(hidden: Tensor, *packed: Tensor) -> Tensor:
            with Packed(packed, places):
                scores: Tensor = self.head.logits(hidden)
            return scores

        shape = ("logits", *hidden.shape, hidden.dtype, self.state)
        return replay(self.head, shape, step, (hidden, *weights))
