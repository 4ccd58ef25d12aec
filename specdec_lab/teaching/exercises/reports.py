"""The result of a submission, and the files for instructors and for Gradescope."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import CheckResult
from specdec_lab.teaching.exercises.showing import plain
from specdec_ref.errors import SpecdecError

POINTS = 10
REPORTS = "reports"
"""The folder of the individual reports. Only in it do students choose names of files that the grader writes."""
PROCESS_ENDED = "process-ended"
TRANSIENT = "grader-failed", "endless", PROCESS_ENDED
"""Diagnoses that the machine or the grader may have caused. The next run grades these submissions again."""
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""A spreadsheet evaluates a cell that starts with one of these, including the full-width forms of = + - @."""


@dataclass(frozen=True)
class Graded:
    """The result of one submission.

    isolation: how its process was isolated. notes: parts of the submission that could not be graded, with reasons.
    """

    submission: str
    verdicts: tuple[CheckResult, ...]
    isolation: str = ""
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> int:
        """Points, `POINTS` for each exercise that passed."""
        return POINTS * sum(v.passed for v in self.verdicts)

    def gradescope(self) -> dict[str, Any]:
        """The content of Gradescope's results.json."""
        tests = [
            {
                "name": EXERCISES[v.exercise].title,
                "score": POINTS * v.passed,
                "max_score": POINTS,
                "status": "passed" if v.passed else "failed",
                "output": plain(v),
            }
            for v in self.verdicts
        ]
        output = "\n".join([f"isolation: {self.isolation}", *self.notes])
        return {"score": self.score, "tests": tests, "output": output}


def write_reports(graded: Sequence[Graded], out: Path) -> None:
    """Write scores.csv, and a results.json in Gradescope's format for each submission.

    For a single submission, results.json is in `out` itself, because Gradescope looks for
    /autograder/results/results.json. For a class, each file is in a folder of its own in `out`/reports.
    If a file cannot be written, raises SpecdecError after all other files were written.
    """
    problems = [_written(out / "scores.csv", _table(graded))]
    for submission in graded:
        folder = out if len(graded) == 1 else out / REPORTS / submission.submission
        problems.append(_written(folder / "results.json", [json.dumps(submission.gradescope(), indent=1)]))
    failed = [problem for problem in problems if problem]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise SpecdecError(f"out={str(out)!r:.80}: {failed[0]}{more}")


def _written(path: Path, lines: Sequence[str]) -> str:
    """Write a file. Returns an error message, or an empty text."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError as error:
        return f"{path.name} cannot be written ({error.strerror})"
    return ""


class _Lines(list[str]):
    """A list of lines with the method that `csv.writer` needs."""

    write = list.append


def _table(graded: Sequence[Graded]) -> Sequence[str]:
    """The lines of scores.csv."""
    lines = _Lines()
    table = csv.DictWriter(lines, ["submission", "score", "of", *EXERCISES, "notes"])
    table.writeheader()
    for submission in graded:
        row: dict[str, Any] = {v.exercise: v.outcome for v in submission.verdicts}
        row["submission"] = _cell(submission.submission)
        row["score"] = submission.score
        row["of"] = POINTS * len(submission.verdicts)
        row["notes"] = _cell("; ".join(submission.notes))
        table.writerow(row)
    return lines


def _cell(text: str) -> str:
    """A text that a spreadsheet shows unchanged: an apostrophe in front keeps it from being evaluated as a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


def record_line(key: str, graded: Graded) -> str:
    """One line of the file from which an interrupted run continues."""
    return json.dumps({"key": key, **asdict(graded)}) + "\n"


def recorded(record: Path) -> dict[str, Graded]:
    """Results of an earlier run. Incomplete lines, and results that the machine may have caused, are left out."""
    by_key: dict[str, Graded] = {}
    if not record.is_file():
        return by_key
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            verdicts = tuple(CheckResult(**verdict) for verdict in entry["verdicts"])
            if any(verdict.diagnosis in TRANSIENT for verdict in verdicts):
                continue
            by_key[entry["key"]] = Graded(entry["submission"], verdicts, entry["isolation"], tuple(entry["notes"]))
        except (ValueError, KeyError, TypeError):
            continue
    return by_key
