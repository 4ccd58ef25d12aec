"""The training text of the shipped models: the source of Python's standard library.

Every user has it, and the PSF license permits its use. Whole modules, with their tests, are held out from training.
Prompts and measurements come from these, so no figure of the course is about text that a model was trained on.
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
"""Modules that no model is trained on. They were chosen by subject (text, numbers, files, network, data structures)
before any training."""

HELD_OUT_EVERY = 10
"""Of a folder of text, every tenth file is held out."""

# Generated tables, vendored copies and files that are broken on purpose. People did not write these.
_NOT_PROSE = frozenset("encodings pydoc_data site-packages ensurepip lib2to3 __pycache__ config-3".split())
_TEST_FOLDERS = frozenset("test tests idle_test".split())
_LONGEST = 400_000  # characters; longer files are generated tables


@dataclass(frozen=True)
class Document:
    """One source file. module: the top-level module that it belongs to; tests belong to the module that they test."""

    path: str
    module: str
    text: str
    is_test: bool


@dataclass(frozen=True)
class Corpus:
    """The documents in three groups: the library, its tests, and the held-out modules."""

    library: tuple[Document, ...]
    tests: tuple[Document, ...]
    held_out: tuple[Document, ...]

    def characters(self) -> dict[str, int]:
        """Number of characters in each group."""
        return {name: sum(len(d.text) for d in getattr(self, name)) for name in ("library", "tests", "held_out")}


def collect(folder: Path | None = None, at_most: int | None = None) -> Corpus:
    """Read the standard library of this Python (or of `folder`) in a fixed order, at most `at_most` files of a group.

    Files that are not UTF-8 or do not parse are left out; the tests contain such files on purpose. Tests of held-out
    modules are dropped, so `held_out` has library files only. Raises SpecdecError if there is no source.
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


def collect_text(folder: Path, at_most: int | None = None) -> Corpus:
    """Read the text files of a folder, at most `at_most` of them: the training text for a target of another kind.

    Every file that is UTF-8 counts, in the folder and below it, in the order of the paths. Every tenth file is held
    out, the first one included. Raises SpecdecError if there are fewer than two.
    """
    documents = list(_read_text(folder))[:at_most]
    if len(documents) < 2:
        raise SpecdecError(
            f"text={str(folder)!r:.200}: has {len(documents)} text files; takes a folder with at least two"
        )
    held_out = tuple(documents[::HELD_OUT_EVERY])
    rest = tuple(d for i, d in enumerate(documents) if i % HELD_OUT_EVERY)
    return Corpus(library=rest, tests=(), held_out=held_out)


def _read_text(folder: Path) -> Iterator[Document]:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield Document(file.relative_to(folder).as_posix(), file.stem, text, is_test=False)


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
