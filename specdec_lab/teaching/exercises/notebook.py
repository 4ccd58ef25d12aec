"""The functions that learners call: check, hint, solution and progress. None of them raises in the notebook."""

import ast
import hashlib
import inspect
import json
import os
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Any

from specdec_lab.teaching.exercises.catalogue import EXERCISES, exercise_named
from specdec_lab.teaching.exercises.exercise import CheckResult
from specdec_lab.teaching.exercises.judging import judge
from specdec_lab.teaching.exercises.portable import why_not_graded
from specdec_lab.teaching.exercises.showing import MARKS, ShownResult
from specdec_ref.errors import SpecdecError

FILE = ".specdec-progress.json"
TRIES = 3
"""Different answers before a solution is shown."""


def check(name: str, function: Any) -> Any:
    """Check an answer and show the result, which is truthy if it passed. Print a message for an unknown name."""
    try:
        verdict = judge(exercise_named(name), function)
    except SpecdecError as error:
        print(error)
        return None
    if verdict.passed:
        note = "; ".join(part for part in (verdict.note, why_not_graded(function)) if part)
        verdict = replace(verdict, note=note)
    if verdict.outcome != "not attempted":
        _note(name, verdict.outcome, what=_fingerprint(function, verdict))
    return ShownResult(verdict)


def _fingerprint(function: Any, verdict: CheckResult) -> str:
    """A hash of the code and the result of an answer; empty for a value of the wrong type, which is not a try."""
    if verdict.diagnosis == "wrong-type":
        return ""
    gives = verdict.outcome, verdict.diagnosis, verdict.case, verdict.yours
    return hashlib.sha256(f"{_code_of(getattr(function, '__code__', None))}{gives}".encode()).hexdigest()[:12]


def _code_of(code: Any) -> str:
    """A function's bytecode, names and constants, without comments and line numbers."""
    if not isinstance(code, CodeType):
        return ""
    inner = [_code_of(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{inner}"


def hint(name: str, number: int | None = None) -> None:
    """Print a hint; without a number, the first one that was not shown yet."""
    try:
        hints = exercise_named(name).hints
    except SpecdecError as error:
        print(error)
        return
    seen = _count(_read().get(name, {}), "hints")
    wanted = seen + 1 if number is None else number
    if wanted not in range(1, len(hints) + 1):
        print(f"{name} has {len(hints)} hints, numbered from 1")
        return
    _note(name, hints=max(seen, wanted))
    more = f'\n  (next: hint("{name}", {wanted + 1}))' if wanted < len(hints) else ""
    print(f"Hint {wanted} of {len(hints)}: {hints[wanted - 1]}{more}")


def solution(name: str) -> None:
    """Print the solution once the exercise is solved, or after three different answers."""
    try:
        exercise = exercise_named(name)
    except SpecdecError as error:
        print(error)
        return
    noted = _read().get(name, {})
    tries = len(_different(noted))
    if noted.get("outcome") != "passed" and tries < TRIES:
        print(
            f"{tries} of {TRIES} tries so far. The solution is shown after {TRIES} different answers. "
            f'Try hint("{name}") first.'
        )
        return
    print(_without_annotations(textwrap.dedent(inspect.getsource(exercise.reference))))


def _without_annotations(source: str) -> str:
    """Remove type annotations, because the notebook does not import their names. Each one is on a single line."""
    lines = [line.encode() for line in source.splitlines()]
    cuts: list[tuple[int, int | None, int | None]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg) and node.annotation:
            cuts.append((node.lineno, node.col_offset + len(node.arg.encode()), node.annotation.end_col_offset))
        elif isinstance(node, ast.AnnAssign):
            cuts.append((node.lineno, node.target.end_col_offset, node.annotation.end_col_offset))
        elif isinstance(node, ast.FunctionDef) and node.returns:
            arrow = lines[node.returns.lineno - 1].rindex(b" -> ", 0, node.returns.col_offset)
            cuts.append((node.returns.lineno, arrow, node.returns.end_col_offset))
    for line, start, end in sorted(cuts, reverse=True):
        lines[line - 1] = lines[line - 1][:start] + lines[line - 1][end:]
    return b"\n".join(lines).decode()


def progress() -> Any:
    """The progress in all exercises, read from the progress file."""
    return Progress(_read())


class Progress:
    """All exercises with their outcomes."""

    def __init__(self, noted: dict[str, Any]):
        self.noted = noted

    def lines(self) -> list[tuple[str, str, int]]:
        """Outcome, title and number of tries of each exercise, in the order of the course."""
        lines = []
        for name, exercise in EXERCISES.items():
            entry = self.noted.get(name, {})
            outcome = entry.get("outcome")
            known = outcome if outcome in MARKS else "not attempted"
            lines.append((str(known), exercise.title, _count(entry, "tries")))
        return lines

    def __repr__(self) -> str:
        lines = self.lines()
        num_passed = sum(outcome == "passed" for outcome, *_ in lines)
        table = [
            f"  {MARKS[outcome]} {title:36} {f'{tries} tries' if tries > 1 else '1 try' if tries else ''}".rstrip()
            for outcome, title, tries in lines
        ]
        return "\n".join([f"{num_passed} of {len(lines)} exercises passed", *table])


def _file() -> Path:
    """The progress file in exercises/, whether the current folder is exercises/, notebooks/ or their parent."""
    if named := os.environ.get("SPECDEC_PROGRESS"):
        return Path(named)
    here = Path()
    candidates = [here / FILE, here / "exercises" / FILE, here.absolute().parent / "exercises" / FILE]
    written = [candidate for candidate in candidates if candidate.is_file()]
    return next(
        iter([*written, *(candidate for candidate in candidates[1:] if candidate.parent.is_dir()), candidates[0]])
    )


def _count(entry: dict[str, Any], what: str) -> int:
    """A count from the progress file, which users may have edited."""
    number = entry.get(what)
    return number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else 0


def _different(entry: dict[str, Any]) -> list[str]:
    """The hashes of different tries."""
    noted = entry.get("different")
    return [what for what in noted if isinstance(what, str)] if isinstance(noted, list) else []


def _read() -> dict[str, Any]:
    """The content of the progress file; empty if it is missing or invalid."""
    try:
        noted = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in noted.items() if isinstance(v, dict)} if isinstance(noted, dict) else {}


def _note(name: str, outcome: str | None = None, hints: int | None = None, what: str = "") -> None:
    """Record an outcome. The file is replaced in one step, so a crash cannot damage it. Write errors are ignored."""
    noted = _read()
    entry = noted.setdefault(name, {})
    if outcome is not None:
        if entry.get("outcome") != "passed":
            entry["outcome"] = outcome
        entry["tries"] = _count(entry, "tries") + 1
        different = _different(entry)
        if what and what not in different and len(different) < TRIES:
            entry["different"] = [*different, what]
        entry["when"] = time.strftime("%Y-%m-%d %H:%M")
    if hints is not None:
        entry["hints"] = hints
    try:
        target = _file().absolute()
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            json.dump(noted, file, indent=1)
        os.replace(file.name, target)
    except OSError:
        pass
