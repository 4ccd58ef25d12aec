"""Run a learner's function with every outcome of its random decisions, for the exact distribution of its result."""

import math
from collections.abc import Callable
from typing import Any

import torch

MOST_OUTCOMES, MOST_DECISIONS, MOST_IN_ONE_RUN, MOST_TOKENS = 20_000, 100_000, 1_000, 1_000
"""Limits on one function: outcomes, decisions in all outcomes, decisions in one run, and tokens to sample from."""
TOLERANCE = 1e-5


class BadRequest(ValueError):
    """An answer made an invalid request or returned an invalid value. value: its result, if it shows the mistake."""

    def __init__(self, message: str, value: Any = None):
        super().__init__(message)
        self.value = value


class Chance:
    """A replacement for randomness: makes the decisions of a script, then always the first possible one. Records the
    probabilities of each."""

    def __init__(self, script: list[int]):
        self._script = list(script)
        self.taken: list[tuple[int, list[float]]] = []

    def accept(self, probability: Any) -> bool:
        """True with this probability, a number from 0 to 1."""
        p = _number(probability)
        if not -TOLERANCE <= p <= 1 + TOLERANCE:
            raise BadRequest(f"chance.accept({p:.4g}): takes a probability, 0 … 1")
        p = min(1.0, max(0.0, p))
        return self._decide([p, 1 - p]) == 0

    def draw(self, probabilities: Any) -> int:
        """A token id sampled with these probabilities, [V], which sum to 1."""
        weights = _weights(probabilities)
        shown = ", ".join(f"{w:.3g}" for w in weights[:6])
        if not weights or not min(weights) >= -TOLERANCE:
            raise BadRequest(f"chance.draw([{shown}]): takes probabilities, which are not negative")
        if not abs(sum(weights) - 1) <= 1e-3:
            raise BadRequest(f"chance.draw([{shown}]): takes probabilities that sum to 1, not to {sum(weights):.4g}")
        return self._decide([max(0.0, w) for w in weights])

    def _decide(self, weights: list[float]) -> int:
        at = len(self.taken)
        if at >= MOST_IN_ONE_RUN:
            raise BadRequest(
                f"more than {MOST_IN_ONE_RUN:,} random decisions in one run: look for a loop that never stops"
            )
        ways = _ways(weights)
        choice = self._script[at] if at < len(self._script) else ways[0]
        if choice not in ways:
            raise BadRequest(
                "a second run with the same decisions took another path: use only the arguments, no randomness and no"
                " memory of your own"
            )
        self.taken.append((choice, weights))
        return choice


def _ways(weights: list[float]) -> list[int]:
    """The possible choices in the order in which they are run: the first, then the others from the last one down."""
    possible = [i for i, weight in enumerate(weights) if weight > 1e-12]
    return [possible[0], *possible[:0:-1]]


def distribution(play: Callable[[Chance], Any]) -> dict[Any, float]:
    """Result → probability, over all random decisions in `play`. Raises BadRequest if there are too many."""
    probabilities: dict[Any, float] = {}
    script: list[int] | None = []
    plays = decisions = 0
    while script is not None:
        chance = Chance(script)
        key = frozen(result := play(chance))
        if not isinstance(key, tuple) or not all(isinstance(token, int) for token in key):
            raise BadRequest(f"the result is {_kind_of(result, key)}; expected a flat list of token ids")
        probabilities[key] = probabilities.get(key, 0.0) + math.prod(
            weights[choice] for choice, weights in chance.taken
        )
        plays, decisions = plays + 1, decisions + len(chance.taken)
        if plays > MOST_OUTCOMES or decisions > MOST_DECISIONS:
            raise BadRequest(
                f"too many random decisions: over {MOST_OUTCOMES:,} outcomes or over {MOST_DECISIONS:,} decisions"
            )
        script = _next_script(chance.taken)
    return probabilities


def _next_script(taken: list[tuple[int, list[float]]]) -> list[int] | None:
    """The same decisions up to the last one that has a choice left, with that choice; None if none has."""
    for i in reversed(range(len(taken))):
        choice, weights = taken[i]
        ways = _ways(weights)
        if choice != ways[-1]:
            return [*(before for before, _ in taken[:i]), ways[ways.index(choice) + 1]]
    return None


def frozen(value: Any) -> Any:
    """A result as a value that a dict can hold as key: lists and tensors of whole numbers become tuples."""
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kind_of(result: Any, key: Any) -> str:
    """The type of a result that is not a flat list of whole numbers, as text. key: the same result, frozen."""
    if key is None:
        return "None (did you forget to return?)"
    shape = getattr(result, "shape", None)
    if shape is not None and len(shape) != 1:
        return f"a tensor of shape {list(shape)}"
    if not isinstance(key, tuple):
        kind = getattr(key, "kind", type(key).__name__)
        advice = " (a yield? return the whole list)" if kind == "generator" else ""
        return f"{key!r:.40}" if isinstance(key, (int, float, str)) else f"a {kind}{advice}"
    odd = next(item for item in key if not isinstance(item, int))
    if isinstance(odd, tuple):
        return "a list of lists"
    plain = odd is None or isinstance(odd, (str, float))
    return f"a list with {f'{odd!r:.40}' if plain else f'a {type(odd).__name__}'} in it"


def _number(value: Any) -> float:
    try:
        return float(value)
    except NO_NUMBER as error:
        raise BadRequest(f"chance.accept({_described(value)}): takes a probability, 0 … 1{_advice(value)}") from error


def _weights(value: Any) -> list[float]:
    try:
        weights = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
    except NO_NUMBER as error:
        raise BadRequest(f"chance.draw({_described(value)}): takes probabilities{_advice(value)}") from error
    if len(weights) > MOST_TOKENS:
        raise BadRequest(f"chance.draw: {len(weights):,} probabilities; takes one for each token of the vocabulary")
    return [float(weight) for weight in weights.tolist()]


NO_NUMBER = TypeError, ValueError, RuntimeError, OverflowError


def _described(value: Any) -> str:
    """A value that is not a number, as text; of an `OpaqueValue`, the name of its type."""
    return f"a {value.kind}" if hasattr(value, "kind") else f"{value!r:.60}"


def _advice(value: Any) -> str:
    return "; did a function return nothing?" if value is None else ""
