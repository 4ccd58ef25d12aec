"""The weights of a model once more, laid out by oneDNN for products with a few rows at a time.

On a CPU PyTorch's usual product of five rows with a matrix takes up to one and a half times as long as that of one row,
and most of what drafting gains is lost there. With packed weights it takes hardly longer. Layers that read the same
input (queries, keys and values; both halves of a gated MLP) are packed as one matrix. The model itself stays as it is.
"""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ROWS = 5
"""Rows that weights are laid out for. The layout is as good for 1 to 9, and no worse than plain weights for more."""

SAME_INPUT = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
"""Linear layers of one module that the plain families (see `capture`) feed with the same tensor."""


@dataclass(frozen=True)
class Packing:
    """A model's weights in that layout.

    weights: the packed matrices. places: for each layer the id of its weight, which matrix holds it, and from which to
    before which of the matrix's outputs are its own.
    """

    weights: tuple[Tensor, ...] = ()
    places: tuple[tuple[int, int, int, int], ...] = ()


def pack(model: nn.Module) -> Packing:
    """Pack the linear layers of a model that are in float32. Nothing is packed where this PyTorch cannot do it."""
    if not can_pack():
        return Packing()
    weights: list[Tensor] = []
    places: list[tuple[int, int, int, int]] = []
    for layers in _groups(model):
        parameters = [layer.weight for layer in layers]
        start = 0
        for parameter in parameters:
            places.append((id(parameter), len(weights), start, start + len(parameter)))
            start += len(parameter)
        weights.append(torch.ops.mkldnn._reorder_linear_weight(torch.cat(parameters).detach(), ROWS))
    return Packing(tuple(weights), tuple(places))


def packed_bytes(model: nn.Module) -> int:
    """What `pack` would take beside the model, in bytes, told from the shapes alone."""
    groups = _groups(model) if can_pack() else ()
    return sum(layer.weight.nbytes for layers in groups for layer in layers)


def _groups(model: nn.Module) -> Iterator[list[nn.Linear]]:
    """Every linear layer in float32 once, those that read the same input together."""
    seen: set[nn.Module] = set()
    for module in model.modules():
        for names in SAME_INPUT:
            found = [getattr(module, name, None) for name in names]
            layers = [layer for layer in found if _packable(layer)]
            if len(layers) == len(names):
                seen.update(layers)
                yield layers
    for module in model.modules():
        if _packable(module) and module not in seen:
            yield [module]


def _packable(module: object) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and module.weight.dtype == torch.float32


@functools.cache
def can_pack() -> bool:
    """Whether this PyTorch can, which it is asked to do by the operators that torch.compile uses: they have no other
    name."""
    try:
        if not torch.backends.mkldnn.is_available():
            return False
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.eye(16), ROWS)
        return torch.equal(_product()(torch.ones(2, 16), packed), torch.ones(2, 16))
    except (AttributeError, RuntimeError):
        return False


@functools.cache
def _product() -> Any:
    """hidden [..., in], packed weight → [..., out]. Scripted, since the tracer cannot hold one of the arguments."""
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.CompilationUnit(
            """
            def product(hidden: Tensor, weight: Tensor) -> Tensor:
                return torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], "")
            """
        ).product


class Packed(TorchFunctionMode):
    """While it lasts, linear layers multiply by their packed weight: the same sums in another order."""

    def __init__(self, packing: Packing, weights: tuple[Tensor, ...]):
        super().__init__()
        self.weights = weights
        self.places = {layer: place for layer, *place in packing.places}
        self.last: tuple[Tensor | None, int, Tensor | None] = (None, -1, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = self.places.get(id(args[1])) if func is F.linear and not kwargs else None
        if place is None:
            return func(*args, **(kwargs or {}))
        which, start, stop = place
        if self.last[0] is not args[0] or self.last[1] != which:
            self.last = args[0], which, _product()(args[0], self.weights[which])
        product: Any = self.last[2]
        part = product if stop - start == product.shape[-1] else product[..., start:stop]
        return part if len(args) < 3 or args[2] is None else part + args[2]
