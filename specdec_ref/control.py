"""What chooses how many tokens to draft next."""

from typing import Protocol

from specdec_ref.errors import SpecdecError, is_whole


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
    if is_whole(k) and k >= 0:
        return FixedK(int(k))
    if not isinstance(k, (int, type)) and hasattr(k, "next_k") and is_whole(getattr(k, "max_k", None)):
        return k
    raise SpecdecError(
        f"k={k!r:.80}: takes a whole number ≥ 0 (tokens drafted per round), or a controller (max_k, next_k, observe)"
    )
