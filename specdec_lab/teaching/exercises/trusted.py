"""Grading in this process, without a sandbox, on any system. Only for your own work, never for that of others."""

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
"""Time limit for all cells of a notebook."""
MOST_KEPT = 20
"""Notebooks whose definitions are kept, because one notebook can answer several exercises."""
SKIPPED = "check", "hint", "judge", "picture", "progress", "solution"
"""Functions that cells call to check an answer. They do nothing while the cells are graded."""
CHECKS = "specdec_lab.teaching.exercises"
MODULES = CHECKS, f"{CHECKS}.notebook", f"{CHECKS}.pictures", f"{CHECKS}.judging"
"""The modules from which cells import these functions."""


class Trusted:
    """Replaces a `Sandbox` and runs the cells in this process."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], TrustedNotebook] = {}

    def __enter__(self) -> "Trusted":
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing: there is no process to end."""

    def next_submission(self) -> None:
        """Do nothing: there is no process to end."""

    @contextmanager
    def open(self, sources: Sequence[str]) -> Iterator["TrustedNotebook"]:
        """The definitions of these cells, which run only once. Nothing is printed in the block."""
        work = self._kept.get(tuple(sources))
        with _quiet(work.environment if work is not None else None):
            if work is None:
                work = TrustedNotebook(sources)
                if len(self._kept) >= MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[tuple(sources)] = work
            yield work


class TrustedNotebook:
    """The definitions of a notebook. broken: one line per failure. environment: the variables after the cells ran."""

    reached = "none: your own work, run in this process"
    limited = True
    """The caller enforces the time limit of its functions."""

    def __init__(self, sources: Sequence[str]):
        self._space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins, "display": lambda *_: None}
        with _checks_skipped(), time_limit(SECONDS):
            self.broken = [clean(line) for line in cells.run(list(sources), self._space, (TooSlow,))]
        self.names = {name for name, value in self._space.items() if callable(value)}
        self.environment = dict(os.environ)

    def function(self, name: str, seconds: float) -> Any:
        """The function of this name. seconds: not used, because the caller enforces the limit."""
        return self._space[name]


class SkippedCheck:
    """The result of a check or a picture while a cell is graded: truthy and empty."""

    passed = True
    headline = ""


def _skip_check(*arguments: Any, **more: Any) -> SkippedCheck:
    return SkippedCheck()


@contextmanager
def _checks_skipped() -> Iterator[None]:
    """In the block, the functions in SKIPPED do nothing."""
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
    """In the block, nothing is printed and no progress is recorded. Afterwards, the environment variables and the
    current folder are restored.

    environment: the variables after an earlier run of the same cells, or None before the first run.
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
    """Set these environment variables and remove all others."""
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
