"""What a learner calls: check, hint, solution, progress. Nothing here raises into the notebook."""

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
HONEST_TRIES = 3
"""So many answers, each unlike the others, before a solution is shown."""


def check(name: str, function: Any) -> Any:
    """Check an answer and show what came of it. The result is true if it passed. A wrong name is told, too."""
    try:
        verdict = judge(exercise_named(name), function)
    except SpecdecError as error:
        print(error)
        return None
    if verdict.passed:
        note = "; ".join(part for part in (verdict.note, why_not_graded(function)) if part)
        verdict = replace(verdict, note=note)
    if verdict.outcome != "not attempted":
        _note(name, verdict.outcome, what=_honest(function, verdict))
    return ShownResult(verdict)


def _honest(function: Any, verdict: CheckResult) -> str:
    """What a try does and gives, as a few letters; nothing where it is of a wrong type, which is no try."""
    if verdict.diagnosis == "wrong-type":
        return ""
    gives = verdict.outcome, verdict.diagnosis, verdict.case, verdict.yours
    return hashlib.sha256(f"{_does(getattr(function, '__code__', None))}{gives}".encode()).hexdigest()[:12]


def _does(code: Any) -> str:
    """A function's code without its comments, names and place."""
    if not isinstance(code, CodeType):
        return ""
    inner = [_does(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{inner}"


def hint(name: str, number: int | None = None) -> None:
    """Show a hint; without a number the next one that was not shown yet."""
    try:
        hints = exercise_named(name).hints
    except SpecdecError as error:
        print(error)
        return
    seen = _count(_read().get(name, {}), "hints")
    wanted = seen + 1 if number is None else number
    if wanted not in range(1, len(hints) + 1):
        print(f"{name} has {len(hints)} hints: 1 … {len(hints)}")
        return
    _note(name, hints=max(seen, wanted))
    more = f'\n  (next: hint("{name}", {wanted + 1}))' if wanted < len(hints) else ""
    print(f"Hint {wanted} of {len(hints)}: {hints[wanted - 1]}{more}")


def solution(name: str) -> None:
    """Show the solution, after it was solved or three times tried: three answers that differ."""
    try:
        exercise = exercise_named(name)
    except SpecdecError as error:
        print(error)
        return
    noted = _read().get(name, {})
    tries = len(_different(noted))
    if noted.get("outcome") != "passed" and tries < HONEST_TRIES:
        print(
            f"{tries} of {HONEST_TRIES} tries so far: the solution is shown after {HONEST_TRIES} that differ. "
            f'hint("{name}") helps.'
        )
        return
    print(_without_annotations(textwrap.dedent(inspect.getsource(exercise.reference))))


def _without_annotations(source: str) -> str:
    """They name types that a notebook does not know. Each stands in one line."""
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
    """How far one is over all exercises, from the file in this folder."""
    return Progress(_read())


class Progress:
    """All exercises with what became of each."""

    def __init__(self, noted: dict[str, Any]):
        self.noted = noted

    def lines(self) -> list[tuple[str, str, int]]:
        """Outcome, title and number of tries, in the course's order."""
        found = []
        for name, exercise in EXERCISES.items():
            entry = self.noted.get(name, {})
            outcome = entry.get("outcome")
            known = outcome if outcome in MARKS else "not attempted"
            found.append((str(known), exercise.title, _count(entry, "tries")))
        return found

    def __repr__(self) -> str:
        lines = self.lines()
        done = sum(outcome == "passed" for outcome, *_ in lines)
        table = [
            f"  {MARKS[outcome]} {title:36} {f'{tries} tries' if tries > 1 else '1 try' if tries else ''}".rstrip()
            for outcome, title, tries in lines
        ]
        return "\n".join([f"{done} of {len(lines)} exercises passed", *table])


def _file() -> Path:
    """Beside the exercises, whether one works in their folder, in the lessons' or in the one above."""
    if named := os.environ.get("SPECDEC_PROGRESS"):
        return Path(named)
    here = Path()
    candidates = [here / FILE, here / "exercises" / FILE, here.absolute().parent / "exercises" / FILE]
    written = [candidate for candidate in candidates if candidate.is_file()]
    return next(
        iter([*written, *(candidate for candidate in candidates[1:] if candidate.parent.is_dir()), candidates[0]])
    )


def _count(entry: dict[str, Any], what: str) -> int:
    """A number from a file that anybody may have edited."""
    number = entry.get(what)
    return number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else 0


def _different(entry: dict[str, Any]) -> list[str]:
    """The tries that count."""
    noted = entry.get("different")
    return [what for what in noted if isinstance(what, str)] if isinstance(noted, list) else []


def _read() -> dict[str, Any]:
    """What is noted; nothing where the file is missing or not ours."""
    try:
        noted = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in noted.items() if isinstance(v, dict)} if isinstance(noted, dict) else {}


def _note(name: str, outcome: str | None = None, hints: int | None = None, what: str = "") -> None:
    """Write it down, in one step, so that a kernel that dies leaves a whole file. Where one cannot write, go on."""
    noted = _read()
    entry = noted.setdefault(name, {})
    if outcome is not None:
        if entry.get("outcome") != "passed":
            entry["outcome"] = outcome
        entry["tries"] = _count(entry, "tries") + 1
        different = _different(entry)
        if what and what not in different and len(different) < HONEST_TRIES:
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
