"""Language models that are tables: a rule gives the distribution after every prefix, in float64.

The exact proof runs on them. The decoding loop uses them like any other model, with rows that grow and are rewound.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec_ref.ancestry import node_paths
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.sampling import Sampling

Rule = Callable[[tuple[int, ...]], Tensor]
"""From a prefix, at least one token long, to the distribution of the token after it: [V] float64, sums to one."""

STALE = -1
"""Takes the place of tokens that the loop has to forget. It is no token, and reading it is a mistake."""

SHARED = frozenset({"rule", "device", "_table"})
"""What a table and its copies share."""


class StaleRead(SpecdecError):
    """A token was read that the loop should have forgotten."""


class TableModel:
    """A `LanguageModel` whose distributions come from `rule`, which must be deterministic.

    Logits are log p in float64, −inf where p is 0. A copy has rows of its own and shares the table.

    Args:
        vocab_size: ≥ 1.
        rule: from a prefix to the distribution of the token after it.
        context: the most tokens of a row.

    Raises:
        SpecdecError: the rule's result is not a distribution, a token is not in the vocabulary, or a rewind goes
            forward.
    """

    def __init__(self, vocab_size: int, rule: Rule, context: int = 64):
        for name, value in (("vocab_size", vocab_size), ("context", context)):
            if not is_whole(value) or value < 1:
                raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1")
        if not callable(rule):
            raise SpecdecError(f"rule={rule!r:.80}: takes a function from a tuple of tokens to probabilities")
        self.vocab_size = vocab_size
        self.rule = rule
        self.context = context
        self.device = torch.device("cpu")
        self.rows: list[list[int]] = []
        self._tree_size = 0  # tokens of the tree that each row ends with, until a path is kept
        self._table: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "TableModel":
        twin = memo[id(self)] = object.__new__(type(self))
        own = {name: copy.deepcopy(value, memo) for name, value in vars(self).items() if name not in SHARED}
        twin.__dict__ = {**vars(self), **own}
        return twin

    def start(self, batch: int, capacity: int) -> None:
        self.rows = [[] for _ in range(batch)]

    def prefill(self, tokens: list[list[int]]) -> None:
        for row, new in zip(self.rows, tokens, strict=True):
            row += self._known(new)

    def extend(self, tokens: Tensor) -> Tensor:
        logits = []
        for row, new in zip(self.rows, tokens.tolist(), strict=True):
            if STALE in row:
                raise StaleRead(f"target or draft: reads tokens that were rejected, without rewinding: {row}")
            before = len(row)
            row += self._known(new)
            logits += [self._entry(tuple(row[:n]))[1] for n in range(before + 1, len(row) + 1)]
        return torch.stack(logits).reshape(*tokens.shape, -1)

    def extend_tree(self, tokens: Tensor, parents: Tensor) -> Tensor:
        logits = []
        earlier = parents.shape[1] - tokens.shape[1]  # nodes that a row ends with already
        for row, new, row_paths in zip(self.rows, tokens.tolist(), node_paths(parents), strict=True):
            if STALE in row:
                raise StaleRead(f"target or draft: reads tokens that were rejected, without rewinding: {row}")
            start = len(row) - earlier
            row += self._known(new)
            text, tree = row[:start], row[start:]
            logits += [self._entry((*text, *(tree[node] for node in path)))[1] for path in row_paths[earlier:]]
        self._tree_size = parents.shape[1]
        return torch.stack(logits).reshape(*tokens.shape, -1)

    def keep_path(self, paths: list[list[int]]) -> None:
        if not self._tree_size:
            raise SpecdecError("keep_path: the last step was no tree")
        for row, path in zip(self.rows, paths, strict=True):
            tree = row[-self._tree_size :]
            row[-self._tree_size :] = [tree[node] for node in path]
        self._tree_size = 0

    def rewind(self, lengths: list[int]) -> None:
        self._tree_size = 0
        for row, n in zip(self.rows, lengths, strict=True):
            end = row.index(STALE) if STALE in row else len(row)
            if n > end and end < len(row):
                raise StaleRead(f"target or draft: rewound to {n} tokens, of which {end} are true")
            if not 0 <= n <= end:
                raise SpecdecError(f"lengths: {n} is not within the {end} tokens of a row; rewinding only goes back")
            del row[n:]

    def keep(self, rows: list[int]) -> None:
        self.rows = [list(self.rows[row]) for row in rows]

    def settle(self, sequences: Sequence[Sequence[int]], spare: int = 0) -> None:
        """At the end of a round, replace the tokens that the loop has to forget by a mark.

        Two states that differ only in what is forgotten then compare equal. Reading the mark raises `StaleRead`.

        Args:
            sequences: the text of each row. All but its newest token may still be in the row.
            spare: how many more tokens may be.
        """
        for row, sequence in zip(self.rows, sequences, strict=True):
            end = len(sequence) - 1 + spare
            if STALE not in row[:end] and (len(row) > end or not spare):
                row[end:] = [STALE]

    def probabilities(self, prefix: Iterable[int]) -> Tensor:
        """The table's entry: the distribution after `prefix`, [V] float64."""
        return self._entry(tuple(self._known(list(prefix))))[0].clone()

    def distribution(self, prefix: Iterable[int], sampling: Sampling | None = None) -> Tensor:
        """The distribution of the token after `prefix`, [V] float64. sampling: default temperature 1."""
        logits = self._entry(tuple(self._known(list(prefix))))[1]
        return (sampling or Sampling()).probabilities(logits)

    def _known(self, tokens: list[int]) -> list[int]:
        if wrong := [token for token in tokens if not 0 <= token < self.vocab_size]:
            raise SpecdecError(f"tokens: id {wrong[0]} is not in the vocabulary, 0 … {self.vocab_size - 1}")
        return tokens

    def _entry(self, prefix: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Probabilities and their logarithms."""
        if prefix not in self._table:
            if not prefix:
                raise SpecdecError("prefix: is empty; takes at least one token")
            p = _distribution("rule", self.rule(prefix), f" after {prefix}")
            if len(p) != self.vocab_size:
                raise SpecdecError(f"rule: gave {len(p)} probabilities after {prefix}; takes {self.vocab_size}")
            self._table[prefix] = p, p.log()
        return self._table[prefix]


def random_table(vocab_size: int, seed: int, *, zeros: float = 0.0, sharpness: float = 1.0) -> TableModel:
    """Every prefix has a random distribution of its own, which depends on the seed and the prefix only.

    Args:
        vocab_size: V.
        seed: a whole number ≥ 0.
        zeros: probability that a token is impossible, in [0, 1); one always stays possible.
        sharpness: standard deviation of the logits, ≥ 0; 0 is uniform, 5 is peaked.
    """
    if not is_whole(seed) or seed < 0:
        raise SpecdecError(f"seed={seed!r:.80}: takes a whole number ≥ 0")
    if not is_number(zeros) or not 0 <= zeros < 1:
        raise SpecdecError(f"zeros={zeros!r:.80}: takes a probability, 0 ≤ zeros < 1")
    if not is_number(sharpness) or not 0 <= sharpness <= 100:
        raise SpecdecError(f"sharpness={sharpness!r:.80}: takes a number, 0 … 100")

    def rule(prefix: tuple[int, ...]) -> Tensor:
        # The length goes in too: numpy takes a seed that ends in zeros for the same seed without them.
        rng = np.random.default_rng([seed, len(prefix), *prefix])
        weights = np.exp(sharpness * rng.standard_normal(vocab_size))
        possible = rng.random(vocab_size) >= zeros
        possible[rng.integers(vocab_size)] = True
        weights = weights * possible
        return torch.from_numpy(weights / weights.sum())

    return TableModel(vocab_size, rule)


def constant_table(probabilities: Sequence[float] | Tensor) -> TableModel:
    """The same distribution after every prefix. probabilities: [V], sums to one."""
    p = _distribution("probabilities", probabilities)
    return TableModel(len(p), lambda prefix: p)


def markov_table(matrix: Sequence[Sequence[float]] | Tensor) -> TableModel:
    """The distribution depends on the last token alone: row i of `matrix`, [V, V], follows token i. Rows sum to one."""
    rows = [_distribution("matrix", row, f" in row {i}") for i, row in enumerate(matrix)]
    if not rows or any(len(row) != len(rows) for row in rows):
        raise SpecdecError(f"matrix: rows of {sorted({len(r) for r in rows})}; takes as many columns as rows")
    return TableModel(len(rows), lambda prefix: rows[prefix[-1]])


def _distribution(name: str, values: object, where: str = "") -> Tensor:
    try:
        p = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecdecError(f"{name}={values!r:.80}: takes probabilities{where}") from error
    if p.ndim != 1 or not len(p) or not (p >= 0).all() or not abs(float(p.sum()) - 1) <= 1e-9:
        raise SpecdecError(f"{name}={p.tolist()!r:.80}: takes probabilities that sum to one{where}")
    return p
