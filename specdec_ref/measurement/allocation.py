"""What a forward pass holds at once, found out without holding it: tensors without numbers, added up as they come and
go."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MostAlive(TorchDispatchMode):
    """Adds up what is allocated and let go, but for tensors known before. peak: bytes."""

    def __init__(self, known: list[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and (storage := t.untyped_storage())._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())
        return result

    def _let_go(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


class _AttentionInTiles(TorchFunctionMode):
    """Attention kernels never hold the whole matrix of weights; PyTorch's stand-in for 'meta' would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return named["query"].new_empty(*named["query"].shape[:-1], named["value"].shape[-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def most_alive(known: list[Tensor]) -> Iterator[MostAlive]:
    """Counts what is allocated inside `with`, beside `known`, on the 'meta' device."""
    with _AttentionInTiles(), MostAlive(known) as most:
        yield most
