"""Steps recorded once and replayed: on a CPU, half the time of a small model's step is Python finding its way.

A step of fixed shape does the same operations every time, so its first run is recorded (torch.jit.trace) and later ones
replay the record: the same operations in the same order, hence the same numbers to the last bit. Nothing is fused,
reordered or rounded otherwise.
"""

import logging
import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from specdec_ref.cache import FixedSlots

PLAIN_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose forward pass is embedding, rotary positions, layers, norm and head, and nothing more."""

USES_BEFORE_RECORDING = 4

_records: "WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Any]]" = WeakKeyDictionary()


def layer_by_layer(
    model: Any, tokens: Tensor, positions: Tensor, mask: Any, cache: Any, keep_logits: int = 0
) -> Tensor:
    """The forward pass of a plain family, without the bookkeeping of transformers' outer functions.

    tokens, positions: [B, n]; mask: additive, or one per kind of layer; returns logits of the last `keep_logits`
    tokens, 0 for all, [B, n or keep_logits, V].
    """
    body = model.model
    hidden = body.embed_tokens(tokens)
    rotary = body.rotary_emb(hidden, position_ids=positions)
    for i, layer in enumerate(body.layers):
        hidden = layer(
            hidden,
            attention_mask=mask[model.config.layer_types[i]] if isinstance(mask, dict) else mask,
            position_ids=positions,
            position_embeddings=rotary,
            past_key_values=cache,
            use_cache=True,
        )
    logits: Tensor = model.lm_head(body.norm(hidden[:, -keep_logits:]))
    return logits


def parts_of(model: nn.Module) -> tuple[int, ...]:
    """What a record holds on to. Where a module or parameter is replaced this changes, and old records are not used."""
    return tuple(map(id, (*model.modules(), *model.parameters())))


def can_be_recorded(model: nn.Module) -> bool:
    """Whether a record would stay true: a plain family on a CPU, and nobody's hooks or patches in the model."""
    parameter = next(model.parameters())
    return parameter.device.type == "cpu" and not any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )


class _Step(nn.Module):
    """A step whose cache comes in as tensors: keys and values of every layer, in turn."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor, rows: Tensor, *slots: Tensor) -> Tensor:
        pairs = dict(enumerate(zip(slots[::2], slots[1::2], strict=True)))
        cache = FixedSlots(pairs, positions, rows)
        return layer_by_layer(self.model, tokens, positions.expand(tokens.shape), mask, cache)


def recorded_step(
    model: nn.Module,
    parts: tuple[int, ...],
    tokens: Tensor,
    positions: Tensor,
    mask: Tensor,
    rows: Tensor,
    slots: list[Tensor],
) -> Tensor | None:
    """`layer_by_layer` over tokens [B, n] with the cache's `slots`, replayed, or recorded when this shape comes often.

    parts: what `parts_of` said when decoding began. One record serves any number of slots. Returns logits [B, n, V],
    or None where it does not pay to record (yet): a record costs as much as some sixty steps
    (0.3 s for 10 layers of width 320, once in a process).
    """
    records = _records.setdefault(model, {})
    shape = (*tokens.shape, *positions.shape, slots[0].dtype, parts)
    step = records.get(shape, 0)
    if isinstance(step, int) and step < USES_BEFORE_RECORDING:
        records[shape] = step + 1
        return None
    if isinstance(step, int):
        logging.disable(logging.WARNING)  # the tracer looks at every property of the model, some of which complain
        try:
            with warnings.catch_warnings(action="ignore"):  # of Python values in the record: the shape fixes them
                step = torch.jit.trace(_Step(model).eval(), (tokens, positions, mask, rows, *slots), check_trace=False)
        finally:
            logging.disable(logging.NOTSET)
        records[shape] = step
    logits: Tensor = step(tokens, positions, mask, rows, *slots)
    return logits
