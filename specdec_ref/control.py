"""What chooses how many tokens to draft next, and what it is told to choose by: the rounds so far."""

from dataclasses import dataclass
from typing import Protocol

from specdec_ref.errors import SpecdecError, is_whole


@dataclass(frozen=True)
class Round:
    """One draft and verify, as one row saw it.

    drafted: the proposed token ids. accepted: how many of them the rule kept. emitted: the ids that entered the text:
    the accepted ones and one more, or fewer where the generation ended inside the round. Seconds are of the whole
    batch.
    """

    drafted: tuple[int, ...]
    accepted: int
    emitted: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float


class Controller(Protocol):
    """Asked before each round; told after it what became of every row."""

    max_k: int

    def next_k(self) -> int:
        """Tokens to draft in the next round, 0…max_k. 0 is one autoregressive step."""
        ...

    def observe(self, rounds: list[Round]) -> None:
        """The round that ended, as each row saw it that was not finished before it."""
        ...


class Watcher(Protocol):
    """Is shown every round of a generation: stands between the loop and its controller."""

    def watch(self, controller: Controller) -> Controller:
        """A controller that chooses as `controller` does."""
        ...


class FixedK:
    """The same k in every round."""

    def __init__(self, k: int):
        self.max_k = k

    def next_k(self) -> int:
        return self.max_k

    def observe(self, rounds: list[Round]) -> None:
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
