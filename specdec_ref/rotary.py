"""Rotary embeddings whose frequencies depend on the length of the text: one length per row, from
first token to last.

Two kinds of scaling in transformers, `longrope` (Phi-3 and its relatives) and `dynamic`, choose
their frequencies by the largest position in a forward pass. Keys that were cached before a text
crossed the threshold are then rotated differently from those after it, and the model's own cached
generation differs from its uncached forward pass.

The rule here: a row has the frequencies of the longest text that it may become (prompt plus new
tokens, at most the context), for every one of its tokens. An uncached forward pass over that many
tokens uses the same. Engines that choose once for a whole server (vLLM: by the maximum length)
apply the same rule with the context as that length.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from specdec_ref.errors import SpecdecError

LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""Values of `rope_type` in transformers whose frequencies depend on the largest position of a pass.
"""


def length_dependent_rotary(model: nn.Module) -> list[nn.Module]:
    """A model's rotary embeddings whose frequencies depend on length; none in most models."""
    return [module for module in model.modules() if _rope_types(module) & LENGTH_DEPENDENT]


def _rope_types(module: nn.Module) -> set[str]:
    """The kinds of scaling of a rotary embedding; several where layers differ. Empty for other
    modules."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return set(kinds.values())
    return {kinds} if isinstance(kinds, str) else set()


@contextmanager
def fixed_lengths(modules: Sequence[nn.Module], lengths: Sequence[int]) -> Iterator[None]:
    """Inside this context each row's rotary embedding is that of a pass over `lengths[row]` tokens.

    Args:
        modules: what `length_dependent_rotary` returned.
        lengths: one per row of the batch, in tokens; a single one serves any number of rows.
    """
    patched = [module for module in modules if "forward" in vars(module)]
    if patched:
        raise SpecdecError(
            "model: its rotary embedding is patched, and its scaling depends on length"
        )
    for module in modules:
        module.forward = _for_lengths(module.forward, lengths)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _for_lengths(forward: Callable[..., Any], lengths: Sequence[int]) -> Callable[..., Any]:
    """Call `forward` once for each length, with one more position: the last of a text that long.
    Drop its result."""

    def embed(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        if position_ids.ndim != 2:
            raise SpecdecError(
                "model: its rotary scaling depends on length and its positions have several axes"
            )
        groups = (
            [position_ids]
            if len(set(lengths)) == 1
            else position_ids.expand(len(lengths), -1).split(1)
        )
        parts = []
        for positions, length in zip(groups, lengths, strict=False):
            last = positions.new_full((len(positions), 1), length - 1)
            # Padding and drafts beyond the end of a row are discarded later; here they must not
            # lengthen it.
            positions = torch.cat([positions.clamp(max=length - 1), last], 1)
            # `dynamic` keeps the frequencies of the longest pass so far until a short pass resets
            # them.
            forward(x, torch.zeros_like(last), *args, **kwargs)
            parts.append(forward(x, positions, *args, **kwargs))
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)[:, :-1]
        return tuple(torch.cat(tensors)[:, :-1] for tensors in zip(*parts, strict=True))

    return embed
