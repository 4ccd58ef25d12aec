"""One's own work, graded right here, without a process of its own or any walls: on every system, never for others'."""

import builtins
import contextlib
import io
from collections.abc import Sequence
from typing import Any

from specdec_ref.teaching.checks import cells
from specdec_ref.teaching.checks.exercise import TooSlow, clean
from specdec_ref.teaching.checks.judging import time_limit

SECONDS = 120.0
"""All cells of a notebook may take so long."""


class Trusted:
    """Stands where a `Sandbox` stands, and runs the cells in this process."""

    def __enter__(self) -> "Trusted":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def open(self, sources: Sequence[str]) -> "OwnWork":
        """Run these cells."""
        return OwnWork(sources)


class OwnWork:
    """What the cells defined. broken: what failed in them, a line each."""

    reached = "none: your own work, run in this process"
    limited = True
    """Its functions have to be ended by who calls them."""

    def __init__(self, sources: Sequence[str]):
        self._space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins, "display": lambda *_: None}
        with contextlib.redirect_stdout(io.StringIO()), time_limit(SECONDS):
            self.broken = [clean(line) for line in cells.run(list(sources), self._space, (TooSlow,))]
        self.names = {name for name, value in self._space.items() if callable(value)}

    def __enter__(self) -> "OwnWork":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def function(self, name: str) -> Any:
        """The function of that name."""
        return self._space[name]
