"""How long the doctor may measure: a limit in seconds that its checks share.

A check may use a part of the time that is left when it begins. What it does not need is left to the checks after it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class OutOfTime(Exception):
    """The time of the present check is used up."""


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
        """Begin to count. Before this there is no limit."""
        self._until = math.inf if self.seconds is None else self.now + self.seconds

    def check(self) -> None:
        """Raise OutOfTime where the present check has used up its time."""
        if not self.left:
            raise OutOfTime

    @contextmanager
    def part(self, share: float) -> Iterator[None]:
        """Allow what happens inside `with` a share of the time left, above 0 and at most 1."""
        before = self._until
        self._until = self.now + share * self.left
        try:
            yield
        finally:
            self._until = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside `with`, such as loading weights."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began
