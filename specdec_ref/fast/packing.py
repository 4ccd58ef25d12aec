"""A second copy of a model's weights, laid out by oneDNN for products with a few rows.

On a CPU, PyTorch's usual product of five rows with a matrix takes up to 1.5 times as long as the
product of one row. That loses most of the gain of drafting. With packed weights it takes hardly
longer. Layers with the same input (queries, keys and values; both halves of a gated MLP) are packed
as one matrix. The model itself does not change.
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
"""The number of rows that the layout is made for. It is as good for 1 to 9 rows, and no worse than
plain weights for more."""

SAME_INPUT = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
"""Linear layers of one module that the plain families (see `trace`) feed with the same tensor."""

Places = dict[int, tuple[int, slice | None]]
"""By the id of a layer's weight: the index of the packed matrix, and the layer's outputs in it
(None: all)."""
Packing = tuple[tuple[Tensor, ...], Places]
NOTHING: Packing = (), {}


def pack(model: nn.Module) -> Packing:
    """Pack the float32 linear layers of a model, or nothing if this PyTorch does not support it."""
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
    """All float32 linear layers, grouped by their input."""
    seen: set[nn.Module] = set()
    for module in model.modules():
        for names in SAME_INPUT:
            layers = [layer for name in names if packable(layer := getattr(module, name, None))]
            if len(layers) == len(names):
                seen.update(layers)
                yield layers
    yield from ([module] for module in model.modules() if packable(module) and module not in seen)


def packable(module: Any) -> TypeGuard[nn.Linear]:
    """Whether `pack` packs this module."""
    return type(module) is nn.Linear and module.weight.dtype == torch.float32


@functools.cache
def packed_product() -> Any:
    """A function (hidden [..., in], packed weight) → [..., out].

    It calls internal operators of torch.compile, which have no public name. It is scripted, since
    the tracer cannot record one of the arguments. None if the operators are missing or give other
    results.
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
    """A context in which linear layers multiply by their packed weight: the same sums in another
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
