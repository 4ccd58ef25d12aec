"""One's own work, graded right here, without a process of its own or any walls: on every system, never for others'."""

import builtins
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from specdec_ref.teaching.checks import cells
from specdec_ref.teaching.checks.exercise import TooSlow, clean
from specdec_ref.teaching.checks.judging import time_limit

SECONDS = 120.0
"""All cells of a notebook may take so long."""


class Trusted:
    """Stands where a `Sandbox` stands, and runs the cells in this process."""

    def __init__(self) -> None:
        self._last: OwnWork | None = None

    def __enter__(self) -> "Trusted":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def next_submission(self) -> None:
        """Nothing to end either."""

    @contextmanager
    def open(self, sources: Sequence[str]) -> Iterator["OwnWork"]:
        """What these cells define; they run once, however often they are opened in a row. Inside nothing is printed."""
        with _quiet():
            if self._last is None or self._last.sources != list(sources):
                self._last = OwnWork(sources)
            yield self._last


class OwnWork:
    """What the cells defined. broken: what failed in them, a line each."""

    reached = "none: your own work, run in this process"
    limited = True
    """Its functions have to be ended by who calls them."""

    def __init__(self, sources: Sequence[str]):
        self.sources = list(sources)
        self._space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins, "display": lambda *_: None}
        with time_limit(SECONDS):
            self.broken = [clean(line) for line in cells.run(self.sources, self._space, (TooSlow,))]
        self.names = {name for name, value in self._space.items() if callable(value)}

    def function(self, name: str, seconds: float) -> Any:
        """The function of that name. seconds: whoever calls it sees to them."""
        return self._space[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Cells print, note what they checked, start servers and open windows: not while they are graded."""
    with open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere, TemporaryDirectory() as folder:
        changes = {"SPECDEC_LIVE": "0", "SPECDEC_PROGRESS": str(Path(folder, "progress.json")), "MPLBACKEND": "agg"}
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            with redirect_stdout(nowhere):
                yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
