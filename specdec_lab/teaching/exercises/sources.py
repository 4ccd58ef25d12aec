"""Write exercises/ from solutions/: the same notebooks without solutions, hidden tests, outputs and tool comments.

    python -m specdec_lab.teaching.exercises.sources

The markers are nbgrader's (### BEGIN SOLUTION …), so nbgrader can process the notebooks in solutions/ itself. The
learners' notebooks need neither its cell metadata nor the comments for our linter.
"""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat

from specdec_ref.errors import SpecdecError

STUB = 'raise NotImplementedError("your code here")'
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?### END SOLUTION[ \t]*$", re.DOTALL | re.MULTILINE)
TOOL_COMMENT = re.compile(r"[ \t]*# noqa\b.*$", re.MULTILINE)
HIDDEN = re.compile(r"\n?^[ \t]*### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS[ \t]*$", re.DOTALL | re.MULTILINE)


def exercise_of(solution: Any) -> Any:
    """The learner's notebook for a notebook with solutions. Raises SpecdecError for a marker without a partner."""
    notebook = nbformat.from_dict(solution)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        cell.metadata.pop("nbgrader", None)
        cell.source = TOOL_COMMENT.sub("", HIDDEN.sub("", SOLUTION.sub(lambda match: match[1] + STUB, cell.source)))
        if "### BEGIN" in cell.source or "### END" in cell.source:
            raise SpecdecError(f"cell {cell.id}: a marker (### BEGIN …, ### END …) has no partner")
    return notebook


def write_exercises(solutions: Path, exercises: Path) -> list[Path]:
    """Write all exercises, and remove notebooks that have no source any more. Returns the written paths."""
    sources = sorted(solutions.glob("*.ipynb"))
    if not sources:
        raise SpecdecError(
            f"solutions={str(solutions)!r:.80}: contains no notebooks; takes a folder of notebooks with solutions"
        )
    exercises.mkdir(exist_ok=True)
    for stale in exercises.glob("*.ipynb"):
        if not (solutions / stale.name).exists():
            stale.unlink()
    for source in sources:
        nbformat.write(exercise_of(nbformat.read(source, as_version=4)), exercises / source.name)
    return [exercises / source.name for source in sources]


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
    for path in write_exercises(root / "solutions", root / "exercises"):
        print(path)
