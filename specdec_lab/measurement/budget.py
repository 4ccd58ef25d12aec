"""The doctor's time limit, in seconds, which its checks share.

A check may use a part of the time that is left when it begins. The checks after it get the time that it does not need.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class OutOfTime(Exception):
    """The present check has no time left."""


class Budget:
    """Seconds for measuring.

    Args:
        seconds: the limit; None for no limit.
        clock: returns seconds from any origin; a test can pass one that needs no waiting.
    """

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.perf_counter):
        self.seconds = seconds
        self._clock = clock
        self._paused = 0.0
        self._until = math.inf

    @property
    def now(self) -> float:
        """Seconds on the clock, without the pauses."""
        return self._clock() - self._paused

    @property
    def left(self) -> float:
        """Seconds left to the present check, never below 0; infinite without a limit."""
        return max(0.0, self._until - self.now)

    def start(self) -> None:
        """Start the clock. Before this there is no limit."""
        self._until = math.inf if self.seconds is None else self.now + self.seconds

    def check(self) -> None:
        """Raise OutOfTime if the present check has no time left."""
        if not self.left:
            raise OutOfTime

    @contextmanager
    def part(self, share: float) -> Iterator[None]:
        """Inside `with`, limit the time to a share of what is left, above 0 and at most 1."""
        before = self._until
        self._until = self.now + share * self.left
        try:
            yield
        finally:
            self._until = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside `with`, for instance while weights are loaded."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began
