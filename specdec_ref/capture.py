"""Steps recorded once and replayed: on a CPU, half the time of a small model's step is Python finding its way.

A step of fixed shape does the same operations every time, so its first run is recorded by PyTorch's tracer, and later
ones replay the record. A step of one token replays the very operations of the model: the same numbers to the last bit.
In a step of several, the linear layers multiply by packed weights (see `packing`): the same sums in another order.
"""

import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from specdec_ref.cache import FixedSlots, RewindableCache, cache_argument
from specdec_ref.packing import NOTHING, Packed, Packing, Places, pack

PLAIN_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose forward pass is embedding, rotary positions, layers, norm and head, and nothing more."""

USES_BEFORE_RECORDING = 12
"""A record costs as much as some hundred steps, so shapes that only the last round of a text has are not worth one."""

Step = Callable[..., Tensor]
"""(tokens [B, n], positions, mask, rows, packed weights and slots) → logits [B, n, V]."""

_records: "WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Any]]" = WeakKeyDictionary()
_packings: "WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Packing]]" = WeakKeyDictionary()


def layer_by_layer(
    model: Any, tokens: Tensor, positions: Tensor, mask: Any, cache: Any, keep_logits: int = 0
) -> Tensor:
    """The forward pass of a plain family, without the bookkeeping of transformers' outer functions.

    tokens, positions: [B, n]; mask: additive, or one per kind of layer; returns logits of the last `keep_logits`
    tokens, 0 for all, [B, n or keep_logits, V].
    """
    body = model.model
    caching = {cache_argument(model): cache}
    hidden = body.embed_tokens(tokens)
    rotary = body.rotary_emb(hidden, position_ids=positions)
    for i, layer in enumerate(body.layers):
        hidden = layer(
            hidden,
            attention_mask=mask[model.config.layer_types[i]] if isinstance(mask, dict) else mask,
            position_ids=positions,
            position_embeddings=rotary,
            use_cache=True,
            **caching,
        )
    logits: Tensor = model.lm_head(body.norm(hidden[:, -keep_logits:]))
    return logits


def parts_of(model: nn.Module) -> tuple[object, ...]:
    """What records and packed weights hold on to. It changes where a module or parameter is replaced, moved, converted
    or written to, and those that were made before are not used then. (Writing through `.data` goes by unseen.)
    """
    parameters = list(model.parameters())
    places = [(id(p), p.data_ptr(), p.dtype) for p in parameters]
    return (*map(id, model.modules()), *places, *(0 if p.is_inference() else p._version for p in parameters))


def untouched(model: nn.Module) -> bool:
    """Whether nobody has put hooks or patches into the model, which `layer_by_layer` and what is replayed leave out."""
    return not any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )


def takes_packed(batch: int, n: int) -> bool:
    """Whether a step multiplies by packed weights: not of one token, which took 9.0 ms instead of 10.5, but would not
    be the model's own any more; not for several sequences, which gain hardly anything."""
    return batch == 1 < n


def _step(model: nn.Module, matrices: int, places: Places) -> Step:
    """A step whose packed weights and cache come in as tensors: the weights, then keys and values of every layer."""

    def step(tokens: Tensor, positions: Tensor, mask: Tensor, rows: Tensor, *others: Tensor) -> Tensor:
        weights, slots = others[:matrices], others[matrices:]
        pairs = dict(enumerate(zip(slots[::2], slots[1::2], strict=True)))
        cache = FixedSlots(pairs, positions, rows)
        with Packed(weights, places):
            return layer_by_layer(model, tokens, positions.expand(tokens.shape), mask, cache)

    return step


def _record(model: nn.Module, step: Step, inputs: tuple[Tensor, ...]) -> Step:
    """The operations of `step` on these inputs, as a function that replays them on others of the same shapes.

    The weights become constants of the function, without a copy. `torch.jit.trace` does the same, but what it makes
    stays in the process for good, with a class for each module of the model: 70 MB for each shape of a step of 30
    layers. This function takes half of that and is freed with the last reference to it.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the tracer looks at every property of the model, some of which complain
    try:
        for parameter in trained:  # no constant may ask for a gradient
            parameter.requires_grad_(False)
        with warnings.catch_warnings(action="ignore"):  # of Python values in the record: the shape fixes them
            graph, _ = torch._C._create_graph_by_tracing(step, inputs, lambda tensor: "", True, False)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        logging.disable(before)
    return torch._C._create_function_from_graph("step", graph)


def recorded_step(
    model: nn.Module, parts: tuple[object, ...], tokens: Tensor, mask: Tensor, cache: RewindableCache
) -> Tensor:
    """`layer_by_layer` over tokens [B, n] at the cache's positions, replayed, or recorded when this shape comes often.

    parts: what `parts_of` said when decoding began. One record serves any number of slots. Returns logits [B, n, V],
    the same before and after recording, to the last bit.
    """
    records, positions = _records.setdefault(model, {}), cache.positions
    slots = [tensor for layer in range(len(cache.slots)) for tensor in cache.window(layer)]
    packed = takes_packed(*tokens.shape)
    if packed and (model not in _packings or _packings[model][0] != parts):
        _packings[model] = parts, pack(model)
    weights, places = _packings[model][1] if packed else NOTHING
    inputs = (tokens, positions, mask, cache.rows, *weights, *slots)
    shape = (*tokens.shape, *positions.shape, slots[0].dtype, parts)
    step = records.get(shape, 0)
    if isinstance(step, int):
        uses, step = step, _step(model, len(weights), places)
        if uses < USES_BEFORE_RECORDING:
            records[shape] = uses + 1
        else:
            with suppress(RuntimeError):  # quantised layers hold their weights where no tracer looks
                step = _record(model, step, inputs)
            records[shape] = step
    logits: Tensor = step(*inputs)
    return logits
