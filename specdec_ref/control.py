"""What chooses how many tokens to draft next."""

from typing import Protocol

from specdec_ref.errors import SpecdecError


class Controller(Protocol):
    """Asked before each round; told after it what became of every row."""

    max_k: int

    def next_k(self) -> int:
        """Tokens to draft in the next round, 0…max_k. 0 is one autoregressive step."""
        ...

    def observe(self, drafted: list[int], accepted: list[int]) -> None:
        """Tokens drafted and accepted in the round that ended, one entry per unfinished row."""
        ...


class FixedK:
    """The same k in every round."""

    def __init__(self, k: int):
        self.max_k = k

    def next_k(self) -> int:
        return self.max_k

    def observe(self, drafted: list[int], accepted: list[int]) -> None:
        """Nothing to learn."""


def as_controller(k: int | Controller) -> Controller:
    """A whole number means always that many. Raises SpecdecError for anything else that is no controller."""
    if isinstance(k, int) and not isinstance(k, bool) and k >= 0:
        return FixedK(k)
    if not isinstance(k, int) and hasattr(k, "next_k"):
        return k
    raise SpecdecError(f"k={k!r}: takes a whole number ≥ 0 (tokens drafted per round), or a controller")
