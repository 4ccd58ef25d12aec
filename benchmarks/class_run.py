"""Grade a class of 200 or more with isolation: solutions, stubs, wrong answers of every kind, hostile submissions.

    python benchmarks/class_run.py                      # the whole class; writes benchmarks/results/class_run.json
    python benchmarks/class_run.py --students 12 --out /tmp/class.json     # a small class, to check that it works

Needs Linux and the folder tests/. The class has

- each hostile submission of the tests, once;
- each wrong answer of the tests, appended to an otherwise right solution;
- a tenth of the class with unchanged exercises;
- a tenth or more with right solutions.

A class too small for all of them takes some of each kind. Prints the time and the submissions with a wrong score. The
exit status is 1 if there are any.
"""

import argparse
import ast
import datetime
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import torch
from rich.console import Console
from rich.progress import Progress

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.grading import POINTS, Graded, grade_folder
from specdec_ref import __version__

ROOT = Path(__file__).parents[1]
TESTS, RESULTS = ROOT / "tests", ROOT / "benchmarks" / "results" / "class_run.json"
MOST = POINTS * len(EXERCISES)
FEWEST = 200
"""The smallest number of students of a whole class."""


class Submission(NamedTuple):
    """A submission with its expected result.

    Attributes:
        kind: 'solution', 'stub', 'wrong' or 'hostile'.
        name: which of its kind.
        due: the expected score.
        source: an additional cell, after the solution of `exercise`; '' for none.
        exercise: the exercise that the cell answers.
        diagnosis: the expected diagnosis.
    """

    kind: str
    name: str
    due: int
    source: str = ""
    exercise: str = ""
    diagnosis: str = ""


def of_tests(name: str) -> Any:
    """A module of the tests, which are not a package."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wrong_answers() -> Iterator[Submission]:
    """The wrong answers of tests/wrong.py, each with the code that it needs, under the name that is graded."""
    text = (TESTS / "wrong.py").read_text(encoding="utf-8")
    parts: dict[str, ast.stmt] = {}
    rows: list[ast.expr] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            parts[node.name] = node
        elif isinstance(node, ast.Assign):
            parts |= {name.id: node for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign | ast.AugAssign) and getattr(node.target, "id", "") == "WRONG":
            assert isinstance(node.value, ast.List)
            rows += node.value.elts
    assert rows
    for row in rows:
        if not isinstance(row, ast.Tuple):  # answers that are made when the file runs have no source to hand in
            continue
        exercise, diagnosis = (ast.literal_eval(item) for item in row.elts[:2])
        answer = ast.unparse(row.elts[2])
        wanted = needed(row.elts[2], parts)
        lines = ["from pathlib import PurePosixPath", "from typing import Any", "import numpy as np", "import torch"]
        lines += [ast.unparse(node) for node in wanted]
        lines += [f"{EXERCISES[exercise].function} = {answer}"]
        yield Submission("wrong", answer, MOST - POINTS, "\n".join(lines), exercise, diagnosis)


def needed(what: ast.AST, parts: dict[str, ast.stmt]) -> list[ast.stmt]:
    """The statements that define what `what` uses, directly or indirectly, in the order of the file."""
    used: set[str] = set()
    todo = [what]
    while todo:
        names = {node.id for node in ast.walk(todo.pop()) if isinstance(node, ast.Name)} & parts.keys() - used
        used |= names
        todo += [parts[name] for name in names]
    nodes = {id(parts[name]): parts[name] for name in used}
    return sorted(nodes.values(), key=lambda node: node.lineno)


def to_be_refused() -> list[Submission]:
    """All hostile and wrong submissions."""
    known = [Submission("hostile", name, 0, source) for name, source in of_tests("hostile").HOSTILE.items()]
    known += wrong_answers()
    return known + [
        Submission("wrong", f"writes into its arguments: {name}", MOST - POINTS, source, name, "changes-arguments")
        for name, source in of_tests("wrong").WRITES.items()
    ]


def everybody(students: int | None = None) -> list[Submission]:
    """The class: all hostile and wrong submissions, stubs, and solutions for the rest.

    students: size of the class; default as many as needed for a tenth of stubs and a tenth of solutions.
    """
    known, stub, solution = to_be_refused(), Submission("stub", "", 0), Submission("solution", "", MOST)
    students = max(FEWEST, len(known) * 10 // 8 + 1) if students is None else students
    stubs = max(1, students // 10)
    if students < len(known) + stubs:
        spread = [stub, *known, solution]
        return [spread[i * (len(spread) - 1) // max(1, students - 1)] for i in range(students)]
    return [*known, *[stub] * stubs, *[solution] * (students - stubs - len(known))]


def hand_in(submission: Submission, place: Path) -> None:
    """Write a submission's notebooks."""
    if submission.kind == "hostile":
        place.mkdir(parents=True)
        cell = nbformat.v4.new_code_cell(textwrap.dedent(submission.source))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), place / "answer.ipynb")
        return
    shutil.copytree(ROOT / ("exercises" if submission.kind == "stub" else "solutions"), place)
    if submission.source:
        name = EXERCISES[submission.exercise].function
        path = next(p for p in sorted(place.glob("*.ipynb")) if f"def {name}(" in p.read_text(encoding="utf-8"))
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell(submission.source))
        nbformat.write(notebook, path)


def report(handed_in: dict[str, Submission], graded: list[Graded], seconds: float, jobs: int) -> dict[str, Any]:
    """The results for the JSON file."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in ("solution", "stub", "wrong", "hostile"):
        of_kind = [result for result in graded if handed_in[result.submission].kind == kind]
        scores = Counter(str(result.score) for result in of_kind)
        kinds[kind] = {"submissions": len(of_kind), "scores": dict(sorted(scores.items()))}
    unjust, unnamed = [], []
    for result in graded:
        submission = handed_in[result.submission]
        who = {"kind": submission.kind, "name": submission.name}
        if result.score != submission.due:
            unjust.append(who | {"score": result.score, "due": submission.due})
        if submission.diagnosis:
            diagnosis = next(v.diagnosis for v in result.verdicts if v.exercise == submission.exercise)
            unnamed += (
                [who | {"diagnosis": diagnosis, "due": submission.diagnosis}]
                if diagnosis != submission.diagnosis
                else []
            )
    kinds["wrong"]["named as they should be"] = kinds["wrong"]["submissions"] - len(unnamed)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(), "processes": jobs},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "specdec_ref": __version__},
        "submissions": len(graded),
        "exercises": len(EXERCISES),
        "points": MOST,
        "seconds": round(seconds, 1),
        "isolation": dict(Counter(result.isolation or "unknown, ended too early" for result in graded)),
        "kinds": kinds,
        "not what they deserve": unjust,
        "named otherwise than they should be": unnamed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, help="how many (default: as many as it takes, 200 or more)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        handed_in = {f"student{i:03}": submission for i, submission in enumerate(everybody(arguments.students))}
        for student, submission in handed_in.items():
            hand_in(submission, Path(folder) / "class" / student)
        began = time.perf_counter()
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("grading", total=len(handed_in))
            graded = grade_folder(
                Path(folder) / "class",
                Path(folder) / "out",
                hidden=[ROOT / "solutions"],
                jobs=arguments.jobs,
                on_graded=lambda completed, _: bar.update(task, completed=completed),
            )
        facts = report(handed_in, graded, time.perf_counter() - began, arguments.jobs)
    arguments.out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"{facts['submissions']} submissions in {facts['seconds']:.0f} s")
    for kind, what in facts["kinds"].items():
        console.print(f"  {kind}: {what}")
    for problem in ("not what they deserve", "named otherwise than they should be"):
        console.print(f"{problem}: {facts[problem] or 'none'}")
    console.print(f"written to {arguments.out}")
    return 1 if facts["not what they deserve"] else 0


if __name__ == "__main__":
    sys.exit(main())
