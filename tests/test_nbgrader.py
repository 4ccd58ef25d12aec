"""solutions/ as nbgrader takes them: its own tools make the assignment and grade what comes back."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader", reason="needs nbgrader: pip install -e '.[instructor]'")

ROOT = Path(__file__).parents[1]
NAMES = ("02_residual", "05_step")


def nbgrader(course: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "nbgrader", *arguments, "--CourseDirectory.course_id=specdec"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # it calls alembic by its name
    environment = os.environ | {"SPECDEC_PROGRESS": str(course / "progress.json"), "PATH": path}
    done = subprocess.run(
        command, cwd=course, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_nbgrader_makes_the_assignment_and_grades_it(tmp_path: Path) -> None:
    source = tmp_path / "source" / "exercises"
    source.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(ROOT / "solutions" / f"{name}.ipynb", source)
    nbgrader(tmp_path, "generate_assignment", "exercises", "--force")
    for name in NAMES:
        released = nbformat.read(tmp_path / "release" / "exercises" / f"{name}.ipynb", as_version=4)
        everything = "\n".join(cell.source for cell in released.cells)
        assert "SOLUTION" not in everything
        assert "HIDDEN" not in everything
        assert "assert verdict" not in everything
        assert "NotImplementedError" in everything
    answers = {
        "good": None,
        "lazy": None,
        "wrong": "def residual(p, q):\n    return p",
        "sly": "def residual(p, q):\n    return p\n\n\ncheck = lambda *a: True",
    }
    for student, answer in answers.items():
        place = tmp_path / "submitted" / student / "exercises"
        shutil.copytree(tmp_path / ("release" if student == "lazy" else "source") / "exercises", place)
        if answer is not None:
            answered = nbformat.read(place / "02_residual.ipynb", as_version=4)
            next(cell for cell in answered.cells if "def residual" in cell.source).source = answer
            nbformat.write(answered, place / "02_residual.ipynb")
    nbgrader(tmp_path, "autograde", "exercises", "--force")
    with sqlite3.connect(tmp_path / "gradebook.db") as book:
        rows = book.execute(
            "select a.student_id, sum(coalesce(g.manual_score, g.auto_score, 0)) from grade g "
            "join submitted_notebook n on g.notebook_id = n.id "
            "join submitted_assignment a on n.assignment_id = a.id group by a.student_id"
        ).fetchall()
    assert dict(rows) == {"good": 20.0, "lazy": 0.0, "wrong": 10.0, "sly": 10.0}
