"""One's own work, graded right here, without a process of its own or any walls: on every system, never for others'."""

import builtins
import contextlib
import io
from collections.abc import Sequence
from typing import Any


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

    def __init__(self, sources: Sequence[str]):
        self._space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins, "display": lambda *_: None}
        self.broken: list[str] = []
        with contextlib.redirect_stdout(io.StringIO()):
            for number, source in enumerate(sources, 1):
                try:
                    exec(compile(source, f"<cell {number}>", "exec"), self._space)
                except SyntaxError as error:
                    self.broken.append(f"SyntaxError: {error.msg} (line {error.lineno} of a cell)")
                except Exception as error:
                    self.broken.append(f"{type(error).__name__}: {error}"[:200])
        self.names = {name for name, value in self._space.items() if callable(value)}

    def __enter__(self) -> "OwnWork":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def function(self, name: str) -> Any:
        """The function of that name."""
        return self._space[name]
