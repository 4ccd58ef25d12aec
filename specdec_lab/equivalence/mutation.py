"""What a wrong version is: the correct code with one place changed, in effect inside a `with` block.

It is stored as an edit of a function's own source, so it differs from the correct code in nothing else. When that code
changes and the edit no longer fits, it raises.
"""

import inspect
import linecache
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from types import CodeType, FunctionType
from typing import Any, Literal

from specdec_ref.errors import SpecdecError

Effect = Literal["distribution", "speed"]


@dataclass(frozen=True)
class Mutant:
    """One wrong version.

    Attributes:
        name: words joined by hyphens.
        title: one line.
        what: what it does wrong.
        seen: the public project, issue or pull request in which it was seen, or 'by reasoning', with or without more.
        effect: 'distribution' where the text has other probabilities, 'speed' where it only costs time.
        output: the consequence.
        caught_by: the test of `museum` that is meant for it.
        where: the function that is changed, as in 'acceptance.residual'.
        right, wrong: the lines of that function that are replaced, and their replacement.
    """

    name: str
    title: str
    what: str
    seen: str
    effect: Effect
    output: str
    caught_by: str
    where: str
    right: str
    wrong: str

    @property
    def function(self) -> FunctionType:
        """The function that is changed."""
        target: Any = resolve_name(f"specdec_ref.{self.where}")
        function: FunctionType = inspect.unwrap(target)
        return function

    @property
    def by_reasoning(self) -> bool:
        """Whether it was thought of, and not seen in public code."""
        return self.seen.startswith("by reasoning")

    @property
    def in_randomness(self) -> bool:
        """Whether it changes `SeededRandomness`, which the exact proof replaces and so cannot see."""
        return self.where.startswith("sampling.SeededRandomness")

    @property
    def only_beyond(self) -> bool:
        """Whether only block verification, trees or heads run the changed code, which decoding uses on request."""
        return self.where.startswith("beyond.") or "tree" in self.where or self.where.endswith("keep_path")

    @property
    def source(self) -> str:
        """The whole function with the wrong lines. Raises SpecdecError where the right lines are not found."""
        function = self.function
        if function.__code__.co_filename.startswith("<mutant"):
            raise SpecdecError(f"{self.name}: {self.where} is already changed, by {function.__code__.co_filename}")
        lines = textwrap.dedent(inspect.getsource(function)).splitlines()
        right, wrong = self.right.splitlines(), self.wrong.splitlines()
        matches = [i for i in range(len(lines)) if _cut(lines[i : i + len(right)], _indent(lines[i])) == right]
        if len(matches) != 1:
            raise SpecdecError(f"{self.name}: its right lines fit {self.where} {len(matches)} times; takes once")
        start, indent = matches[0], _indent(lines[matches[0]])
        put = [indent + line if line else "" for line in wrong]
        return "\n".join([*lines[:start], *put, *lines[start + len(right) :]]) + "\n"

    @property
    def difference(self) -> str:
        """The right lines with a minus before them, then the wrong ones with a plus, as in a patch."""
        old = [f"-{line}" for line in self.right.splitlines()]
        return "\n".join([*old, *(f"+{line}" for line in self.wrong.splitlines())])

    @contextmanager
    def installed(self) -> Iterator["Mutant"]:
        """Every caller of the function gets the wrong version, until the `with` block ends or raises.

        Not for several threads at once. Raises SpecdecError where the function is already changed.
        """
        function: Any = self.function
        source = self.source
        right, file = function.__code__, f"<mutant {self.name}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
        function.__code__ = _compiled(source, function.__name__, file)
        try:
            yield self
        finally:
            function.__code__ = right


def _compiled(source: str, name: str, file: str) -> CodeType:
    """The code of the function `name` that `source` defines. Its decorators are not run: they already apply."""
    module = compile(source, file, "exec", dont_inherit=True)
    return next(part for part in module.co_consts if isinstance(part, CodeType) and part.co_name == name)


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _cut(lines: list[str], indent: str) -> list[str]:
    return [line.removeprefix(indent) for line in lines]
