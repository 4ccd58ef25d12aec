"""Your own work, graded in this process, without a sandbox: on every system, and never for others' work."""

import builtins
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from specdec_lab.teaching.exercises import cells
from specdec_lab.teaching.exercises.exercise import TooSlow, clean
from specdec_lab.teaching.exercises.judging import time_limit

SECONDS = 120.0
"""All cells of a notebook may take so long."""
MOST_KEPT = 20
"""Notebooks of which the definitions are kept, since a notebook can answer several exercises."""
SKIPPED = "check", "hint", "judge", "picture", "progress", "solution"
"""What cells call to see how they are doing. It has limits of its own, and does nothing while cells are graded."""
CHECKS = "specdec_lab.teaching.exercises"
MODULES = CHECKS, f"{CHECKS}.notebook", f"{CHECKS}.pictures", f"{CHECKS}.judging"
"""Where cells import those from."""


class Trusted:
    """Takes the place of a `Sandbox`, and runs the cells in this process."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], TrustedNotebook] = {}

    def __enter__(self) -> "Trusted":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def next_submission(self) -> None:
        """Nothing to end either."""

    @contextmanager
    def open(self, sources: Sequence[str]) -> Iterator["TrustedNotebook"]:
        """What these cells define. They run once, however often they are opened. Inside nothing is printed."""
        work = self._kept.get(tuple(sources))
        with _quiet(work.environment if work is not None else None):
            if work is None:
                work = TrustedNotebook(sources)
                if len(self._kept) >= MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[tuple(sources)] = work
            yield work


class TrustedNotebook:
    """What the cells defined. broken: what failed in them, a line each. environment: the variables that they left."""

    reached = "none: your own work, run in this process"
    limited = True
    """Its functions have to be ended by who calls them."""

    def __init__(self, sources: Sequence[str]):
        self._space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins, "display": lambda *_: None}
        with _checks_skipped(), time_limit(SECONDS):
            self.broken = [clean(line) for line in cells.run(list(sources), self._space, (TooSlow,))]
        self.names = {name for name, value in self._space.items() if callable(value)}
        self.environment = dict(os.environ)

    def function(self, name: str, seconds: float) -> Any:
        """The function of that name. seconds: whoever calls it sees to them."""
        return self._space[name]


class SkippedCheck:
    """The result of a check or a picture in a cell that is being graded. It counts as true, and has no content."""

    passed = True
    headline = ""


def _skip_check(*arguments: Any, **more: Any) -> SkippedCheck:
    return SkippedCheck()


@contextmanager
def _checks_skipped() -> Iterator[None]:
    """Inside, what cells import to check or draw their answers does nothing and takes no time."""
    modules = [importlib.import_module(name) for name in MODULES]
    before = [(module, name, vars(module)[name]) for module in modules for name in SKIPPED if name in vars(module)]
    for module, name, _ in before:
        setattr(module, name, _skip_check)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def _quiet(environment: dict[str, str] | None) -> Iterator[None]:
    """Inside, nothing is printed, noted or started, and cells may change variables and the folder for themselves.

    environment: the variables as the same cells left them, or None before they have run.
    """
    variables, folder = dict(os.environ), Path.cwd()
    with open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere, TemporaryDirectory() as scratch:
        own = {"SPECDEC_LIVE": "0", "SPECDEC_PROGRESS": str(Path(scratch, "progress.json")), "MPLBACKEND": "agg"}
        try:
            _set_variables({**(environment if environment is not None else variables), **own})
            with redirect_stdout(nowhere):
                yield
        finally:
            _set_variables(variables)
            os.chdir(folder)


def _set_variables(variables: dict[str, str]) -> None:
    """These variables and no others."""
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
