"""The weights of a model once more, laid out by oneDNN for products with a few rows at a time.

On a CPU PyTorch's usual product of five rows with a matrix takes up to one and a half times as long
as that of one row, and most of what drafting gains is lost there. With packed weights it takes
hardly longer. Layers that read the same input (queries, keys and values; both halves of a gated
MLP) are packed as one matrix. The model itself stays as it is.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ROWS = 5
"""Rows that weights are laid out for. The layout is as good for 1 to 9, and no worse than plain
weights for more."""

SAME_INPUT = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
"""Linear layers of one module that the plain families (see `trace`) feed with the same tensor."""

Places = dict[int, tuple[int, slice | None]]
"""By id of a layer's weight: which of the packed matrices holds it, and its own outputs there
(None: all)."""
Packing = tuple[tuple[Tensor, ...], Places]
NOTHING: Packing = (), {}


def pack(model: nn.Module) -> Packing:
    """Pack the linear layers of a model that are in float32. Nothing is packed where this PyTorch
    cannot do it."""
    weights: list[Tensor] = []
    places: Places = {}
    for layers in _groups(model) if packed_product() else ():
        start = 0
        for layer in layers:
            own = slice(start, start + layer.out_features) if len(layers) > 1 else None
            places[id(layer.weight)], start = (len(weights), own), start + layer.out_features
        together = torch.cat([layer.weight for layer in layers]).detach()
        weights.append(torch.ops.mkldnn._reorder_linear_weight(together, ROWS))
    return tuple(weights), places


def _groups(model: nn.Module) -> Iterator[list[nn.Linear]]:
    """Every linear layer in float32 once, those that read the same input together."""
    seen: set[nn.Module] = set()
    for module in model.modules():
        for names in SAME_INPUT:
            layers = [layer for name in names if packable(layer := getattr(module, name, None))]
            if len(layers) == len(names):
                seen.update(layers)
                yield layers
    yield from ([module] for module in model.modules() if packable(module) and module not in seen)


def packable(module: Any) -> TypeGuard[nn.Linear]:
    """Whether that is a layer that `pack` packs."""
    return type(module) is nn.Linear and module.weight.dtype == torch.float32


@functools.cache
def packed_product() -> Any:
    """hidden [..., in], packed weight → [..., out], by operators that torch.compile uses and that
    have no other name.

    Scripted, since the tracer cannot hold one of the arguments. None where they are missing or do
    something else.
    """
    call = 'torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], "")'
    script = f"def product(hidden: Tensor, weight: Tensor) -> Tensor:\n    return {call}\n"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    with warnings.catch_warnings(action="ignore"):
        product = torch.jit.CompilationUnit(script).product
    try:
        packed, rows = (
            torch.ops.mkldnn._reorder_linear_weight(torch.eye(16), ROWS),
            torch.ones(2, 16),
        )
        return product if torch.equal(product(rows, packed), rows) else None
    except (AttributeError, RuntimeError):
        return None


class Packed(TorchFunctionMode):
    """While it lasts, linear layers multiply by their packed weight: the same sums in another
    order."""

    def __init__(self, weights: tuple[Tensor, ...], places: Places):
        super().__init__()
        self.weights, self.places = weights, places
        self.last: tuple[Any, int, Any] = None, -1, None  # an input, the matrix, and their product

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear or kwargs or id(args[1]) not in self.places:
            return func(*args, **(kwargs or {}))
        which, own = self.places[id(args[1])]
        if self.last[0] is not args[0] or self.last[1] != which:
            self.last = args[0], which, packed_product()(args[0], self.weights[which])
        product = self.last[2] if own is None else self.last[2][..., own]
        return product if len(args) < 3 or args[2] is None else product + args[2]
