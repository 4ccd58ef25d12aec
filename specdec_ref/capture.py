"""Steps recorded once and replayed: on a CPU, half the time of a small model's step is Python finding its way.

A step of fixed shape does the same operations every time, so its first run is recorded (torch.jit.trace) and later ones
replay the record. A step of one token replays the very operations of the model: the same numbers to the last bit. In a
step of several, the linear layers multiply by weights that oneDNN has laid out for that (`Packed`): the same sums in
another order.
"""

import functools
import logging
import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from specdec_ref.cache import FixedSlots

PLAIN_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose forward pass is embedding, rotary positions, layers, norm and head, and nothing more."""

USES_BEFORE_RECORDING = 12
"""A record costs as much as some hundred steps, so shapes that only the last round of a text has are not worth one."""

PACKED_FOR_ROWS = 5
"""Rows that packed weights are laid out for. They are as good for 2 to 9, and no worse than plain ones for more."""

_records: "WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Any]]" = WeakKeyDictionary()
_packed: "WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], dict[int, Tensor]]]" = WeakKeyDictionary()


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


def parts_of(model: nn.Module) -> tuple[object, ...]:
    """What records and packed weights hold on to. It changes where a module or parameter is replaced, moved, converted
    or written to, and those that were made before are not used then. (Writing through `.data` goes by unseen.)
    """
    parameters = list(model.parameters())
    written = [0 if p.is_inference() else p._version for p in parameters]
    places = [(id(p), p.data_ptr(), p.dtype) for p in parameters]
    return (*map(id, model.modules()), *places, *written)


def can_be_recorded(model: nn.Module) -> bool:
    """Whether a record would stay true: a plain family on a CPU, and nobody's hooks or patches in the model."""
    parameter = next(model.parameters())
    return parameter.device.type == "cpu" and not any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )


def packed_weights(model: nn.Module, parts: tuple[object, ...]) -> dict[int, Tensor]:
    """The weights of the linear layers as oneDNN wants them for a few rows, by id of the parameter. A second copy.

    A product of 2 to 9 rows then takes hardly longer than one of a single row: PyTorch's usual one takes up to 1.7
    times as long, and most of what drafting gains is lost. Empty where this PyTorch or these numbers allow no packing.
    """
    packed = _packed.get(model)
    if packed is None or packed[0] != parts:
        linear = [m.weight for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32]
        pack = torch.ops.mkldnn._reorder_linear_weight if linear and _can_pack() else None
        packed = _packed[model] = parts, {id(w): pack(w.detach(), PACKED_FOR_ROWS) for w in linear} if pack else {}
    return packed[1]


@functools.cache
def _can_pack() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:  # what torch.compile uses on CPUs; no public name leads there
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.eye(16), PACKED_FOR_ROWS)
        _packed_linear(torch.ones(2, 16), packed, None)
    except (AttributeError, RuntimeError):
        return False
    return True


def _packed_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear by a packed weight. Scripted, since the tracer does not know the type of one of these arguments."""
    global _scripted
    if _scripted is None:
        with warnings.catch_warnings(action="ignore"):
            _scripted = torch.jit.CompilationUnit(_PACKED_LINEAR).packed_linear
    product: Tensor = _scripted(hidden, weight, bias)
    return product


_scripted: Any = None
_PACKED_LINEAR = """
def packed_linear(hidden: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
"""


class Packed(TorchFunctionMode):
    """While it lasts, linear layers whose weight is in `weights` multiply by its packed form."""

    def __init__(self, weights: dict[int, Tensor]):
        super().__init__()
        self.weights = weights

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and id(args[1]) in self.weights and not kwargs:
            return _packed_linear(args[0], self.weights[id(args[1])], args[2] if len(args) > 2 else None)
        return func(*args, **(kwargs or {}))


class _Step(nn.Module):
    """A step whose cache and packed weights come in as tensors: packed weights, then keys and values of every layer."""

    def __init__(self, model: nn.Module, weights: tuple[int, ...]):
        super().__init__()
        self.model = model
        self.weights = weights

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor, rows: Tensor, *others: Tensor) -> Tensor:
        packed, slots = others[: len(self.weights)], others[len(self.weights) :]
        pairs = dict(enumerate(zip(slots[::2], slots[1::2], strict=True)))
        cache = FixedSlots(pairs, positions, rows)
        with Packed(dict(zip(self.weights, packed, strict=True))):
            return layer_by_layer(self.model, tokens, positions.expand(tokens.shape), mask, cache)


def recorded_step(
    model: nn.Module,
    parts: tuple[object, ...],
    tokens: Tensor,
    positions: Tensor,
    mask: Tensor,
    rows: Tensor,
    slots: list[Tensor],
) -> Tensor:
    """`layer_by_layer` over tokens [B, n] with the cache's `slots`, replayed, or recorded when this shape comes often.

    parts: what `parts_of` said when decoding began. One record serves any number of slots. Returns logits [B, n, V],
    the same before and after recording, to the last bit.
    """
    records = _records.setdefault(model, {})
    one_sequence = tokens.shape[0] == 1 < tokens.shape[1]  # with more, packing gains little and is not worth its memory
    weights = packed_weights(model, parts) if one_sequence else {}
    inputs = (tokens, positions, mask, rows, *weights.values(), *slots)
    shape = (*tokens.shape, *positions.shape, slots[0].dtype, parts)
    step = records.get(shape, 0)
    if isinstance(step, int):
        uses, step = step, _Step(model, tuple(weights)).eval()
        if uses < USES_BEFORE_RECORDING:
            records[shape] = uses + 1
        else:
            logging.disable(logging.WARNING)  # the tracer looks at every property of the model, some of which complain
            try:
                with warnings.catch_warnings(action="ignore"):  # of Python values in the record: the shape fixes them
                    step = records[shape] = torch.jit.trace(step, inputs, check_trace=False)
            finally:
                logging.disable(logging.NOTSET)
    logits: Tensor = step(*inputs)
    return logits
