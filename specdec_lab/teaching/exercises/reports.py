"""What a submission got, and the files in which instructors and Gradescope read it."""

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
"""The folder of the single reports. Apart from it, no file that the grader writes has a name that students choose."""
PROCESS_ENDED = "process-ended"
PASSING = "grader-failed", "endless", PROCESS_ENDED
"""Diagnoses that the machine or the grader may have caused. They are recorded, and graded again by the next run."""
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""A spreadsheet runs a cell that starts with one of these, the full-width forms of = + - @ among them."""


@dataclass(frozen=True)
class Graded:
    """What a submission got.

    isolation: how far its process was cut off. notes: what of the submission could not be graded, and why.
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
    """Write scores.csv, and for each submission a results.json as Gradescope reads it.

    Of a single submission, results.json is in `out` itself, since Gradescope looks for
    /autograder/results/results.json. Of a class, each is in a folder of its own below `out`/reports.
    Raises SpecdecError where a file cannot be written, after all the others were.
    """
    problems = [_written(out / "scores.csv", _table(graded))]
    for one in graded:
        folder = out if len(graded) == 1 else out / REPORTS / one.submission
        problems.append(_written(folder / "results.json", [json.dumps(one.gradescope(), indent=1)]))
    failed = [problem for problem in problems if problem]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise SpecdecError(f"out={str(out)!r:.80}: {failed[0]}{more}")


def _written(path: Path, lines: Sequence[str]) -> str:
    """Write a file, and return why that was impossible, or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError as error:
        return f"{path.name} cannot be written ({error.strerror})"
    return ""


class _Lines(list[str]):
    """What `csv.writer` writes into."""

    write = list.append


def _table(graded: Sequence[Graded]) -> Sequence[str]:
    """The lines of scores.csv."""
    lines = _Lines()
    table = csv.DictWriter(lines, ["submission", "score", "of", *EXERCISES, "notes"])
    table.writeheader()
    for one in graded:
        row: dict[str, Any] = {v.exercise: v.outcome for v in one.verdicts}
        row["submission"] = _cell(one.submission)
        row["score"] = one.score
        row["of"] = POINTS * len(one.verdicts)
        row["notes"] = _cell("; ".join(one.notes))
        table.writerow(row)
    return lines


def _cell(text: str) -> str:
    """A text that a spreadsheet shows as it is: with an apostrophe in front where it would run as a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


def record_line(key: str, graded: Graded) -> str:
    """One line of the record from which an interrupted run continues."""
    return json.dumps({"key": key, **asdict(graded)}) + "\n"


def recorded(record: Path) -> dict[str, Graded]:
    """What an earlier run recorded: whole lines only, and nothing that the machine or the grader may have caused."""
    found: dict[str, Graded] = {}
    if not record.is_file():
        return found
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            verdicts = tuple(CheckResult(**verdict) for verdict in entry["verdicts"])
            if any(verdict.diagnosis in PASSING for verdict in verdicts):
                continue
            found[entry["key"]] = Graded(entry["submission"], verdicts, entry["isolation"], tuple(entry["notes"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
