"""The text the shipped models learn from: the source of Python's own standard library.

Every user has it, and the PSF license permits it. Whole modules, with their tests, are held out from training:
prompts and measurements come from those, so no figure of the course is about text a model has seen.
"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specdec_ref.errors import SpecdecError

HELD_OUT = frozenset(
    "calendar csv difflib fractions graphlib heapq imaplib json queue sched selectors shlex statistics textwrap wave "
    "zipfile".split()
)
"""Modules no model trains on. Chosen by subject (text, numbers, files, network, data structures) before any
training."""

# Tables written by programs, vendored copies and files that are broken on purpose: not what people write.
_NOT_PROSE = frozenset("encodings pydoc_data site-packages ensurepip lib2to3 __pycache__ config-3".split())
_TEST_FOLDERS = frozenset("test tests idle_test".split())
_LONGEST = 400_000  # characters; longer files are generated tables


@dataclass(frozen=True)
class Document:
    """One source file. `module` is the top-level module it belongs to (tests belong to what they test)."""

    path: str
    module: str
    text: str
    is_test: bool


@dataclass(frozen=True)
class Corpus:
    """Three piles of documents: what people call the library, its tests, and the modules held out of both."""

    library: tuple[Document, ...]
    tests: tuple[Document, ...]
    held_out: tuple[Document, ...]

    def characters(self) -> dict[str, int]:
        """Number of characters in each pile."""
        return {name: sum(len(d.text) for d in getattr(self, name)) for name in ("library", "tests", "held_out")}


def collect(folder: Path | None = None, at_most: int | None = None) -> Corpus:
    """Read the standard library of the running interpreter (or `folder`) in a fixed order; `at_most` files of a pile.

    Files that are not UTF-8 or do not parse are left out: the tests hold such files on purpose. Held-out tests are
    dropped altogether; `held_out` has library files only. Raises SpecdecError where there is no source.
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    documents = list(_read(root))
    if not documents:
        raise SpecdecError(f"the standard library: no Python source below {root}; takes a Python that came with it")
    seen = [d for d in documents if d.module not in HELD_OUT]
    return Corpus(
        library=tuple(d for d in seen if not d.is_test)[:at_most],
        tests=tuple(d for d in seen if d.is_test)[:at_most],
        held_out=tuple(d for d in documents if d.module in HELD_OUT and not d.is_test),
    )


def _read(root: Path) -> Iterator[Document]:
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if any(p in _NOT_PROSE or p.startswith("config-3") for p in parts) or parts[0].startswith("_sysconfigdata"):
            continue
        try:
            text = file.read_text(encoding="utf-8")
            with warnings.catch_warnings(action="ignore"):
                ast.parse(text)
        except (UnicodeDecodeError, SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        if 0 < len(text) <= _LONGEST:
            yield Document("/".join(parts), _module(parts), text, any(p in _TEST_FOLDERS for p in parts))


def _module(parts: tuple[str, ...]) -> str:
    """`json/decoder.py`, `test/test_json/test_dump.py` and `test/json_tests.py` all belong to `json`."""
    owner = parts[1] if parts[0] == "test" and len(parts) > 1 else parts[0]
    owner = owner.removesuffix(".py")
    for prefix in ("test_", "_test_"):
        owner = owner.removeprefix(prefix)
    for suffix in ("_tests", "_testdata"):
        owner = owner.removesuffix(suffix)
    return owner.lstrip("_") or owner
