"""Steps recorded once and replayed. On a CPU, half of the time of a small model's step is Python
overhead.

A step of fixed shape runs the same operations every time. So PyTorch's tracer records it once its
shape has occurred often, and it is replayed from then on. In steps of a single sequence the linear
layers multiply by packed weights (see `packing`): the same sums in another order. Autoregressive
steps and steps that score drafted tokens use the same weights, so the speedup is a fair comparison.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from specdec_ref.cache import FixedSlots, RewindableCache, cache_argument, store_features
from specdec_ref.fast.packing import NOTHING, Packed, Packing, Places, pack

PLAIN_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types with a forward pass of only embedding, rotary positions, layers, norm and head."""

USES_BEFORE_RECORDING = 12
"""Plain runs of a shape before it is recorded. A recording costs as much as about a hundred steps,
so rare shapes, as in the last round of a text, are not worth it."""

Shape = tuple[object, ...]
State = tuple[object, ...]


@dataclass
class Records:
    """The recordings of one model.

    Attributes:
        state: the `model_state` when the weights were packed.
        packing: the packed weights.
        steps: recorded steps by shape.
        uses: how often each shape was run before it was recorded.
    """

    state: State = ()
    packing: Packing = NOTHING
    steps: dict[Shape, "Step"] = field(default_factory=dict)
    uses: dict[Shape, int] = field(default_factory=dict)


_records: "WeakKeyDictionary[nn.Module, Records]" = WeakKeyDictionary()


def layer_by_layer(
    model: Any,
    tokens: Tensor,
    positions: Tensor,
    mask: Any,
    cache: Any,
    keep_logits: int = 0,
    feature_layers: tuple[int, ...] = (),
) -> Tensor:
    """The forward pass of a plain family, without the bookkeeping of transformers' outer functions.

    Args:
        model: a causal LM of one of `PLAIN_FAMILIES`.
        tokens, positions: [B, n].
        mask: additive, [B or 1, 1, n, W], or one for each kind of layer.
        cache: the cache that the layers write to; None for no cache.
        keep_logits: the number of last tokens to score; 0 scores all.
        feature_layers: layers whose hidden states the cache keeps as well (see `store_features`).

    Returns:
        Logits [B, n or keep_logits, V].
    """
    body = model.model
    caching = {cache_argument(model): cache}
    hidden = body.embed_tokens(tokens)
    rotary = body.rotary_emb(hidden, position_ids=positions)
    hidden_states = [hidden]
    for i, layer in enumerate(body.layers):
        hidden = layer(
            hidden,
            attention_mask=mask[model.config.layer_types[i]] if isinstance(mask, dict) else mask,
            position_ids=positions,
            position_embeddings=rotary,
            use_cache=True,
            **caching,
        )
        if feature_layers:
            hidden_states.append(hidden)
    if feature_layers:
        hidden_states[-1] = body.norm(hidden)  # transformers counts the last layer with its norm
        store_features(cache, hidden_states, feature_layers)
    logits: Tensor = model.lm_head(body.norm(hidden[:, -keep_logits:]))
    return logits


def model_state(model: nn.Module) -> State:
    """A value that changes if a module or parameter is replaced, moved, converted or written to.

    Recordings and packed weights of another state are not used. (Writes through `.data` are not
    detected.)
    """
    modules = [id(module) for module in model.modules()]
    parameters = list(model.parameters())
    places = [(id(p), p.data_ptr(), p.dtype) for p in parameters]
    versions = [0 if p.is_inference() else p._version for p in parameters]
    return (*modules, *places, *versions)


def untouched(model: nn.Module) -> bool:
    """Whether the model has no hooks and no patched `forward`. `layer_by_layer` and replays would
    skip them."""
    return not any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
        for module in model.modules()
    )


def is_plain(model: Any) -> bool:
    """Whether `layer_by_layer` is the whole forward pass of this model."""
    return model.config.model_type in PLAIN_FAMILIES and untouched(model)


def takes_packed(batch: int) -> bool:
    """Whether a step multiplies by packed weights. Batches of several sequences hardly gain."""
    return batch == 1


Step = Callable[..., Tensor]
"""(tokens [B, n], positions, slot mapping, mask, rows, packed weights and slots) → logits [B, n,
V]."""


def step_of(
    model: nn.Module, num_weights: int, places: Places, feature_layers: tuple[int, ...] = ()
) -> Step:
    """A step that takes its packed weights and cache as tensors: first the weights, then the keys
    and values of every layer."""

    def step(
        tokens: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        mask: Tensor,
        rows: Tensor,
        *weights_and_slots: Tensor,
    ) -> Tensor:
        weights, slots = weights_and_slots[:num_weights], weights_and_slots[num_weights:]
        layers = dict(enumerate(zip(slots[::2], slots[1::2], strict=True)))
        cache = FixedSlots(layers, slot_mapping, rows)
        with Packed(weights, places):
            return layer_by_layer(
                model,
                tokens,
                positions.expand(tokens.shape),
                mask,
                cache,
                feature_layers=feature_layers,
            )

    return step


def record(model: nn.Module, step: Step, inputs: tuple[Tensor, ...]) -> Step:
    """Record the operations of `step` on these inputs.

    The weights become constants of the recording, without a copy. `torch.jit.trace` would do the
    same, but its result is never freed, and has a class for each module of the model: 70 MB for
    each shape of a step of 30 layers. This recording takes half of that, and is freed with the last
    reference to it.

    Args:
        model: owns the weights that `step` uses.
        step: the step to record.
        inputs: tensors of the shapes to record for.

    Returns:
        A function that replays the operations on other inputs of the same shapes.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:  # a constant must not require a gradient
            parameter.requires_grad_(False)
        with _without_warnings():
            graph, _ = torch._C._create_graph_by_tracing(
                step, inputs, lambda tensor: "", True, False
            )
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    recorded: Step = torch._C._create_function_from_graph("step", graph)
    return recorded


def recorded_step(
    model: nn.Module,
    state: State,
    tokens: Tensor,
    mask: Tensor,
    cache: RewindableCache,
    feature_layers: tuple[int, ...] = (),
) -> Tensor:
    """`layer_by_layer` at the cache's positions, replayed where this shape is recorded.

    Args:
        model: a causal LM of one of `PLAIN_FAMILIES`.
        state: what `model_state` returned when decoding began.
        tokens: [B, n].
        mask: additive, [B or 1, 1, n, W].
        cache: the cache, after `advance` or `advance_tree` for the tokens. One recording serves any
            number of slots, and trees of any shape with the same number of nodes.
        feature_layers: as in `layer_by_layer`.

    Returns:
        Logits [B, n, V], the same before and after recording, to the last bit.
    """
    weights, places = packed_weights(model, state, len(tokens))
    slots = [tensor for layer in range(len(cache.slots)) for tensor in cache.window(layer)]
    where = (cache.positions, cache.slot_mapping)
    inputs = (tokens, *where, mask, cache.rows, *weights, *slots)
    shape = (tokens.shape, *(w.shape for w in where), slots[0].dtype, state, feature_layers)
    return replay(model, shape, step_of(model, len(weights), places, feature_layers), inputs)


def packed_weights(model: nn.Module, state: State, batch: int) -> Packing:
    """The packed weights of a model in this state; `NOTHING` if steps of this batch use none."""
    if not takes_packed(batch):
        return NOTHING
    records = _records.setdefault(model, Records())
    if records.state != state:
        records.state = state
        records.packing = pack(model)
    return records.packing


def replay(model: nn.Module, shape: Shape, step: Step, inputs: tuple[Tensor, ...]) -> Tensor:
    """Compute `step(*inputs)`, recorded once it has occurred often and replayed from then on.

    Args:
        model: the model of the step. Its recordings are freed with it.
        shape: a key that distinguishes this step from other steps of the model.
        step: takes `inputs`, and is the same function for the same shape.
        inputs: all tensors that change from step to step.
    """
    records = _records.setdefault(model, Records())
    if shape in records.steps:
        return records.steps[shape](*inputs)
    records.uses[shape] = records.uses.get(shape, 0) + 1
    if records.uses[shape] > USES_BEFORE_RECORDING:
        with suppress(RuntimeError):  # quantized layers hold their weights where no tracer looks
            step = record(model, step, inputs)
        records.steps[shape] = step
    return step(*inputs)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the warnings of tracing, which reads every property of a model and fixes Python
    values by shape."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
