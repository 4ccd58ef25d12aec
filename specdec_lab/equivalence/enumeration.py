"""How the proof enumerates outcomes: it replays the unchanged decoding loop with a `Randomness` that follows a script.

It goes depth first and round by round, with one replay of the loop from its start for each path. Two ends of rounds at
which the loop remembers the same have the same future. They are merged, and their probabilities added.
"""

import copy
import heapq
import itertools
import pickle
from collections import defaultdict, deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import product
from math import inf, prod
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from specdec_lab.equivalence.tables import SHARED, TableModel
from specdec_ref import decoding
from specdec_ref.acceptance import Verify, verify
from specdec_ref.decoding import Controller, Round
from specdec_ref.drafting import Drafter
from specdec_ref.errors import SpecdecError
from specdec_ref.models import LanguageModel, TransformersModel
from specdec_ref.sampling import Sampling

Emitted = tuple[Any, ...]
"""The emitted tokens of one row, or of every row."""

NEGLIGIBLE = 1e-15
"""Paths less likely than this are dropped: a wrong loop may emit nothing, so that it never ends."""


@dataclass(frozen=True)
class Choice:
    """One random decision: the possible outcomes, their probabilities, and which of them is taken."""

    options: tuple[int, ...]
    probabilities: tuple[float, ...]
    which: int = 0


class Script:
    """A `Randomness` that follows a list of choices, and takes the first possible outcome after its end.

    Outcomes of probability 0 are skipped, and certain outcomes are no choice. Weights that do not sum to one are
    scaled, as in `SeededRandomness`. Raises SpecdecError for weights that are negative, NaN or all 0, and where a
    replay asks for another choice than before.
    """

    def __init__(self, choices: Sequence[Choice]):
        self.choices = list(choices)
        self.at = 0

    def draw(self, probabilities: Tensor) -> Tensor:
        rows = probabilities.double().reshape(-1, probabilities.shape[-1]).tolist()
        if broken := [row for row in rows if not all(p >= 0 for p in row) or not 0 < sum(row) < inf]:
            raise SpecdecError(f"draw: {broken[0]!r:.80} is no distribution: it takes weights ≥ 0, not all of them 0")
        tokens = [self._choose(range(len(row)), row) for row in rows]
        return torch.tensor(tokens, dtype=torch.int64, device=probabilities.device).reshape(probabilities.shape[:-1])

    def accept(self, probability: Tensor) -> Tensor:
        probabilities = probability.double().flatten().tolist()
        if not all(p >= 0 for p in probabilities):
            raise SpecdecError(
                f"accept: {probabilities!r:.80} holds a value that is negative or NaN; takes probabilities"
            )
        decisions = [self._choose((1, 0), (p, 1 - p)) if p < 1 else 1 for p in probabilities]
        return torch.tensor(decisions, dtype=torch.bool, device=probability.device).reshape(probability.shape)

    def _choose(self, options: Sequence[int], weights: Sequence[float]) -> int:
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        if len(possible) == 1:
            return options[possible[0]]
        total = sum(weights)
        choice = Choice(tuple(options[i] for i in possible), tuple(weights[i] / total for i in possible))
        if self.at == len(self.choices):
            self.choices.append(choice)
        written = self.choices[self.at]
        if replace(written, which=0) != choice:
            raise SpecdecError(
                "speculate: took another path when it was replayed, so not all its randomness is Randomness"
            )
        self.at += 1
        return written.options[written.which]

    def probability(self, start: int) -> float:
        """The probability of the choices from `start` on."""
        return prod(choice.probabilities[choice.which] for choice in self.choices[start:])

    def following(self, start: int) -> list[Choice] | None:
        """The next script, depth first, that is the same up to `start`; None after the last."""
        for i in range(len(self.choices) - 1, start - 1, -1):
            choice = self.choices[i]
            if choice.which + 1 < len(choice.options):
                return [*self.choices[:i], replace(choice, which=choice.which + 1)]
        return None


@dataclass(frozen=True)
class LoopState:
    """The objects with state between rounds. They are copied together, so that shared objects stay shared."""

    target: LanguageModel
    drafter: Drafter | None
    controller: Controller


@dataclass(frozen=True)
class Node:
    """The end of a round: the tokens emitted so far, whether all rows have finished, and a script that leads here."""

    emitted: Emitted
    finished: bool
    rounds: int
    script: Sequence[Choice]


class FixedSeconds:
    """A controller that observes the same seconds in every replay, so that all replays agree."""

    def __init__(self, controller: Controller):
        self.controller = controller
        self.max_k = controller.max_k

    def next_k(self) -> int:
        return self.controller.next_k()

    def observe(self, rounds: list[Round]) -> None:
        self.controller.observe([replace(row_round, draft_seconds=0.001, verify_seconds=0.001) for row_round in rounds])


class Enumeration:
    """Every output that some prompts can have. Call `solve`, then read paths, rounds, and means over the first round.

    Args:
        state: models, drafter and controller.
        prompts, lengths: token ids, and the most new tokens of each.
        sampling, eos, context: as in `speculate`.
        limit: the most replays.
        spare: tokens after a row's sequence that a table may hold and that count as remembered. Later ones count as
            forgotten, so that more can be merged; `solve` raises `StaleRead` where they are read after all. None: all
            tokens count.
        verify: the verification rule.
    """

    def __init__(
        self,
        state: LoopState,
        prompts: list[tuple[int, ...]],
        lengths: list[int],
        sampling: Sampling,
        eos: frozenset[int],
        context: int,
        limit: int,
        spare: int | None = 0,
        verify: Verify = verify,
    ):
        self.state, self.prompts, self.lengths = state, prompts, lengths
        self.sampling, self.eos, self.context = sampling, eos, context
        self.limit, self.spare, self.verify = limit, spare, verify
        self.paths = self.rounds = 0
        self.drafted_first = self.accepted_first = self.tokens_first = 0.0
        self._nodes: dict[Hashable, Node] = {None: Node(tuple(() for _ in prompts), False, 0, ())}

    def solve(self) -> dict[Emitted, float]:
        """Probability of every outcome."""
        result: dict[Emitted, float] = defaultdict(float)
        ways: dict[Hashable, dict[Hashable, float]] = {}
        waiting: dict[Hashable, tuple[float, int]] = {None: (1.0, 0)}  # its probability, and rounds until there
        ticket = itertools.count(1)
        queue: list[tuple[int, int, Hashable]] = [(0, 0, None)]  # fewest tokens first: by then all of it has arrived
        while queue:
            key = heapq.heappop(queue)[-1]
            probability, rounds = waiting.pop(key)
            node = self._nodes[key]
            if node.finished:
                result[node.emitted] += probability
                self.rounds = max(self.rounds, rounds)
                continue
            if probability < NEGLIGIBLE:
                continue
            if rounds > self.limit:
                raise SpecdecError(f"limit={self.limit}: still at {node.emitted} after so many rounds; the loop hangs")
            if key not in ways:
                ways[key] = self._next_round(node)
            for after, p_after in ways[key].items():
                if after not in waiting:
                    tokens = sum(map(len, self._nodes[after].emitted))
                    heapq.heappush(queue, (tokens, next(ticket), after))
                before = waiting.get(after, (0.0, 0))
                waiting[after] = before[0] + probability * p_after, max(before[1], rounds + 1)
        return dict(result)

    def _next_round(self, node: Node) -> dict[Hashable, float]:
        """Every end of the round after this one, with its probability."""
        states: dict[Hashable, float] = defaultdict(float)
        start = len(node.script)
        choices: Sequence[Choice] | None = node.script
        while choices is not None:
            script = Script(choices)
            key, rows, ended = self._replay(script, node.rounds + 1)
            path_probability = script.probability(start)
            states[key] += path_probability
            finished = ended or all(row.finish for row in rows)
            reached = Node(tuple(tuple(row.new) for row in rows), finished, node.rounds + 1, tuple(script.choices))
            self._nodes.setdefault(key, reached)
            for first in [row.rounds[0] for row in rows if row.rounds] if node.rounds == 0 else []:
                self.drafted_first += path_probability * bool(first.drafted)
                self.accepted_first += path_probability * bool(first.accepted)
                self.tokens_first += path_probability * (first.accepted + 1) / len(rows)
            choices = script.following(start)
        return states

    def _replay(self, script: Script, rounds: int) -> tuple[Hashable, list[decoding.Row], bool]:
        """Replay this number of rounds from the start. Returns the loop's state, its rows, and whether it ended."""
        self.paths += 1
        if self.paths > self.limit:
            smaller = "make k, max_new_tokens, the vocabulary or the batch smaller"
            raise SpecdecError(f"limit={self.limit}: there are more paths than that; {smaller}")
        try:
            state = copy.deepcopy(self.state)
        except TypeError as error:
            raise SpecdecError(f"target, drafter, k: one of them cannot be copied: {error}") from error
        rows = [decoding.Row(p, n) for p, n in zip(self.prompts, self.lengths, strict=True)]
        loop = decoding.speculate(
            state.target,
            state.drafter,
            rows,
            FixedSeconds(state.controller),
            self.sampling,
            script,
            self.eos,
            self.context,
            self.verify,
        )
        memory: Hashable = "ended"
        for _ in range(rounds):
            if (active := next(loop, None)) is None:
                break
            tables: list[TableModel] = []
            memory = _fingerprint(state, {}, tables)
            for table in tables:
                if self.spare is not None and len(table.rows) == len(active):
                    table.settle([row.sequence for row in active], self.spare)
            memory = memory, tuple(tuple(map(tuple, table.rows)) for table in tables)
        return (memory, tuple((tuple(row.new), row.finish) for row in rows)), rows, active is None


def _fingerprint(thing: Any, seen: dict[int, int], tables: list[TableModel]) -> Hashable:
    """What an object remembers, without the rows of tables. Equal memories have equal futures.

    Args:
        thing: any object.
        seen: objects met before, by id.
        tables: those that are met are added.
    """
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        return type(thing), repr(thing)
    if id(thing) in seen:
        return "again", seen[id(thing)]
    seen[id(thing)] = len(seen)
    if isinstance(thing, TableModel):
        tables.append(thing)
    own, held = _contents(thing)
    return own, tuple(_fingerprint(item, seen, tables) for item in held)


@singledispatch
def _contents(thing: Any) -> tuple[Hashable, list[Any]]:
    """What identifies an object by itself, and the objects that it holds, which are visited in turn."""
    if hasattr(thing, "__dict__"):
        names = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        slots = [getattr(thing, name, None) for name in names]
        return (type(thing),), [*vars(thing), *vars(thing).values(), *slots]
    try:
        return (type(thing), pickle.dumps(thing)), []
    except Exception:  # objects that cannot be compared are never equal, so nothing is merged
        return object(), []


@_contents.register
def _(table: TableModel) -> tuple[Hashable, list[Any]]:
    own = [value for name, value in vars(table).items() if name not in SHARED and name != "rows"]
    return (type(table), id(table.rule)), own


@_contents.register(nn.Module)
@_contents.register(TransformersModel)
def _(real: Any) -> tuple[Hashable, list[Any]]:
    return object(), []  # real models are not compared, so their states are never equal and never merged


@_contents.register
def _(tensor: Tensor) -> tuple[Hashable, list[Any]]:
    return (tensor.dtype, tensor.shape, repr(tensor.tolist())), []


@_contents.register(list)
@_contents.register(tuple)
@_contents.register(deque)
def _(things: Collection[Any]) -> tuple[Hashable, list[Any]]:
    return (type(things), getattr(things, "maxlen", None)), list(things)


@_contents.register
def _(entries: dict) -> tuple[Hashable, list[Any]]:  # type: ignore[type-arg]
    return type(entries), [*entries, *entries.values()]


@_contents.register
def _(function: FunctionType) -> tuple[Hashable, list[Any]]:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return function.__code__, [*cells, *vars(function).values()]


@_contents.register
def _(method: MethodType) -> tuple[Hashable, list[Any]]:
    return method.__func__, [method.__self__]


@_contents.register
def _(kind: type) -> tuple[Hashable, list[Any]]:
    return kind, []


class EveryDecision:
    """A `Randomness` for a batch that has one row for each way to decide about n drafted positions.

    Attributes:
        decisions: [2ⁿ, n] bool, all ways to decide.
        probability: [2ⁿ], how likely each is, once `accept` was called.
        next_token: [2ⁿ, V], what `draw` was asked to sample from.
    """

    def __init__(self, n: int):
        self.decisions = torch.tensor(list(product((False, True), repeat=n)))
        self.probability = torch.empty(0)
        self.next_token = torch.empty(0)

    def accept(self, probability: Tensor) -> Tensor:
        """The decisions of each row. Where one cannot come, the row has probability 0 and gets the possible one."""
        self.probability = torch.where(self.decisions, probability, 1 - probability).prod(-1)
        return (self.decisions | (probability >= 1)) & (probability > 0)

    def draw(self, probabilities: Tensor) -> Tensor:
        """Any token: what matters here is the distribution."""
        self.next_token = probabilities
        return probabilities.argmax(-1)
