"""Every outcome that chance can have, for a learner's function that asks it: accept with a probability, or draw."""

from collections.abc import Callable
from typing import Any

import torch

MOST_OUTCOMES = 20_000
TOLERANCE = 1e-5


class BadRequest(ValueError):
    """What was asked of chance is no probability, or no distribution."""


class Chance:
    """Decides as a script says, and writes down how likely that was; beyond the script it takes the first way."""

    def __init__(self, script: list[int]):
        self._script = list(script)
        self.taken: list[tuple[int, list[float]]] = []

    def accept(self, probability: Any) -> bool:
        """True with that probability, a number from 0 to 1."""
        p = _number(probability)
        if not -TOLERANCE <= p <= 1 + TOLERANCE:
            raise BadRequest(f"chance.accept({p:.4g}): takes a probability, 0 … 1")
        p = min(1.0, max(0.0, p))
        return self._decide([p, 1 - p]) == 0

    def draw(self, probabilities: Any) -> int:
        """A token, with these probabilities, [V], which add up to 1."""
        weights = [float(x) for x in torch.as_tensor(probabilities, dtype=torch.float64).flatten()]
        shown = ", ".join(f"{w:.3g}" for w in weights[:6])
        if not weights or not min(weights) >= -TOLERANCE:
            raise BadRequest(f"chance.draw([{shown}]): takes probabilities, which are never below 0")
        if not abs(sum(weights) - 1) <= 1e-3:
            raise BadRequest(f"chance.draw([{shown}]): takes probabilities that add up to 1, not {sum(weights):.4g}")
        return self._decide([max(0.0, w) for w in weights])

    def _decide(self, weights: list[float]) -> int:
        possible = [i for i, weight in enumerate(weights) if weight > 1e-12]
        at = len(self.taken)
        choice = self._script[at] if at < len(self._script) else possible[0]
        self.taken.append((choice, weights))
        return choice


def distribution(play: Callable[[Chance], Any]) -> dict[Any, float]:
    """Result → probability, over all that chance can decide in `play`. Raises BadRequest where that never ends."""
    found: dict[Any, float] = {}
    scripts: list[list[int]] = [[]]
    for _ in range(MOST_OUTCOMES):
        if not scripts:
            return found
        script = scripts.pop()
        chance = Chance(script)
        result = play(chance)
        probability = 1.0
        for i, (choice, weights) in enumerate(chance.taken):
            if i >= len(script):
                others = [j for j in range(choice + 1, len(weights)) if weights[j] > 1e-12]
                scripts += [[c for c, _ in chance.taken[:i]] + [j] for j in others]
            probability *= weights[choice]
        key = frozen(result)
        if not isinstance(key, tuple) or not all(isinstance(token, int) for token in key):
            raise BadRequest(f"the result is {_kind_of(result, key)}; takes a flat list of whole numbers, the tokens")
        found[key] = found.get(key, 0.0) + probability
    raise BadRequest(f"chance was asked so often that there are more than {MOST_OUTCOMES:,} outcomes")


def frozen(value: Any) -> Any:
    """A result as something that can be counted: lists and tensors of whole numbers become tuples."""
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kind_of(result: Any, key: Any) -> str:
    """What a result is that is no flat list of whole numbers, in words. key: the same, frozen."""
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
    except (TypeError, ValueError) as error:
        raise BadRequest(f"chance.accept({value!r:.60}): takes a probability, 0 … 1") from error
