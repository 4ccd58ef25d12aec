"""Rotary embeddings with frequencies that depend on the length of the text: one length per row.

Two kinds of scaling in transformers, `longrope` (Phi-3 and its relatives) and `dynamic`, choose
their frequencies by the largest position in a forward pass. Keys that were cached before a text
crossed a threshold are then rotated differently from later keys. So the model's own cached
generation differs from its uncached forward pass.

Here all tokens of a row use the frequencies for the longest text that the row may become (prompt
plus new tokens, at most the context). An uncached forward pass over that many tokens uses the same
frequencies. Some engines choose the frequencies once for a whole server, as vLLM does by the
maximum length. This is the same rule, with the context as the length.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from specdec_ref.errors import SpecdecError

LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""Values of `rope_type` in transformers with frequencies that depend on a pass's largest position.
"""


def length_dependent_rotary(model: nn.Module) -> list[nn.Module]:
    """A model's rotary embeddings that depend on length. Most models have none."""
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
    """Inside this context, each row is rotated as in a pass over `lengths[row]` tokens.

    Args:
        modules: the result of `length_dependent_rotary`.
        lengths: one per row of the batch, in tokens; a single length serves any number of rows.
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
    """Call `forward` once for each length, with an additional position: the last one of a text of
    that length. The result for that position is dropped."""

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
            # Padding and drafts beyond the end of a row are discarded later. They must not lengthen
            # the row here.
            positions = torch.cat([positions.clamp(max=length - 1), last], 1)
            # `dynamic` keeps the frequencies of the longest pass so far until a short pass resets
            # them.
            forward(x, torch.zeros_like(last), *args, **kwargs)
            parts.append(forward(x, positions, *args, **kwargs))
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)[:, :-1]
        return tuple(torch.cat(tensors)[:, :-1] for tensors in zip(*parts, strict=True))

    return embed
