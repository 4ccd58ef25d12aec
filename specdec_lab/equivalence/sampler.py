"""The interface of samplers: arguments, valid samples, and errors for invalid ones."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec_ref.errors import SpecdecError, is_whole

if TYPE_CHECKING:
    from specdec_lab.equivalence.result import Equivalence

Rows = Tensor | Sequence[Sequence[int]]


class Sampler(Protocol):
    """Samples continuations of a prompt. A plain function with the same arguments works as well.

    It may also have these attributes:

    - name: for reports.
    - batch: how many rows to request per call; default 1,000.
    - eos: ids at which it stops; default none, so that every row has `length` tokens.
    """

    def sample(self, prompt: Sequence[int], number: int, length: int, seed: int) -> Rows:
        """`number` independent continuations of `prompt` by `length` new tokens each, [number, length] int64.

        A row that stopped at one of `eos` may be shorter or padded: what follows an end token is ignored. Calls with
        different seeds must be independent of each other too.
        """
        ...


class SamplerError(SpecdecError):
    """The sampler failed, or its result is not valid. partial: the test's result so far; None without samples."""

    def __init__(self, message: str, partial: "Equivalence | None" = None):
        super().__init__(message)
        self.partial = partial


def crash(error: Exception) -> str:
    """A sampler's exception in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:220].removesuffix(":")


def name_of(sampler: Any) -> str:
    """The name of a sampler in reports: its own `name`, else that of its function or class."""
    return str(getattr(sampler, "name", None) or getattr(sampler, "__name__", None) or type(sampler).__name__)


def ends_of(sampler: Any) -> tuple[int, ...]:
    """The ids at which a sampler stops, sorted. Raises SpecdecError for anything but ids."""
    ids = getattr(sampler, "eos", None) or ()
    if not isinstance(ids, (frozenset, set, tuple, list)) or not all(is_whole(i) and i >= 0 for i in ids):
        raise SpecdecError(f"sampler: its eos is {ids!r:.80}; takes a set of token ids")
    return tuple(sorted(ids))


def batch_of(sampler: Any, default: int) -> int:
    """How many rows to request per call of a sampler. Raises SpecdecError for anything but a number of rows."""
    batch = getattr(sampler, "batch", default)
    if not is_whole(batch) or batch < 1:
        raise SpecdecError(f"sampler: its batch is {batch!r:.80}; takes a whole number ≥ 1")
    return int(batch)


def function_of(sampler: Any) -> Callable[..., Any]:
    """The sampler's function. Raises SpecdecError for an object that cannot sample."""
    sample = getattr(sampler, "sample", sampler)
    if isinstance(sampler, type) or not callable(sample):
        takes = "takes an object with sample(prompt, number, length, seed), or such a function"
        raise SpecdecError(f"sampler={sampler!r:.80}: {takes}")
    return sample  # type: ignore[no-any-return]


def checked(rows: object, number: int, length: int, vocab_size: int, end: Sequence[int] = ()) -> NDArray[np.int64]:
    """The samples that a sampler returned, as [at most `number`, `length`] int64.

    End tokens become the first one in `end`, and all tokens after them −1. The caller handles missing rows. Raises
    SpecdecError for invalid samples.
    """
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu()
        rows = rows.to(torch.float32).numpy() if rows.is_floating_point() else rows.numpy()
    if not isinstance(rows, (np.ndarray, Sequence)) or isinstance(rows, (str, bytes)) or not getattr(rows, "ndim", 2):
        raise SpecdecError(f"sampler: gave {rows!r:.80}; takes rows of token ids, [{number}, {length}] int64")
    if len(rows) > number:
        raise SpecdecError(f"sampler: gave {len(rows)} rows where {number} were asked for")
    tokens_or_end = np.full((len(rows), length), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        tokens = _until_the_end(i, row, length, end)
        _check_tokens(i, tokens, vocab_size)
        tokens_or_end[i, : len(tokens)] = tokens
    return tokens_or_end


def _until_the_end(i: int, row: Any, length: int, end: Sequence[int]) -> Sequence[Any]:
    """Row i as at most `length` tokens, up to its end token. Raises SpecdecError for too many or too few."""
    if isinstance(row, (Tensor, np.ndarray)):
        row = row.tolist()
    if not isinstance(row, Sequence) or isinstance(row, (str, bytes)):
        raise SpecdecError(f"sampler: row {i} is {row!r:.60}; takes {length} token ids")
    stop = next((n for n, token in enumerate(row) if token in end), None)
    if stop is not None:
        return [*row[:stop], end[0]][:length]
    if len(row) != length:
        hint = "new tokens only, without the prompt" if len(row) > length else "or fewer that end with an end token"
        raise SpecdecError(f"sampler: row {i} has {len(row)} tokens; takes {length} ({hint})")
    return row[:length]


def _check_tokens(i: int, tokens: Sequence[Any], vocab_size: int) -> None:
    for token in tokens:
        if not is_whole(token):
            raise SpecdecError(f"sampler: row {i} holds {token!r:.40}; takes token ids, which are whole numbers")
        if not 0 <= token < vocab_size:
            raise SpecdecError(f"sampler: row {i} holds {token!r:.40}, not in the vocabulary, 0 … {vocab_size - 1}")
