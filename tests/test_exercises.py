"""exercises/ is what solutions/ makes of it, leaks nothing, runs unsolved from top to bottom, and can be graded."""

import ast
import html
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import Exercise
from specdec_lab.teaching.exercises.judging import PUBLIC_SEED, judge
from specdec_lab.teaching.exercises.matrix import page
from specdec_lab.teaching.exercises.sample import diagnosis, picture
from specdec_lab.teaching.exercises.sources import STUB, exercise_of, write_exercises
from specdec_ref.errors import SpecdecError

ROOT = Path(__file__).parents[1]
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
each = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def functions(notebook: Any) -> dict[str, ast.FunctionDef]:
    trees = [ast.parse(source) for source in code(notebook)]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def asked_in(path: Path) -> list[Exercise]:
    """The exercises of a notebook: those whose function it defines."""
    defined = functions(nbformat.read(path, as_version=4))
    return [exercise for exercise in EXERCISES.values() if exercise.function in defined]


def test_every_exercise_is_asked_in_one_notebook_in_the_course_s_order() -> None:
    assert [exercise for path in SOLUTIONS for exercise in asked_in(path)] == list(EXERCISES.values())
    assert all(path.stem[3:] in {exercise.name for exercise in asked_in(path)} for path in SOLUTIONS)


def test_exercises_are_what_solutions_make_of_them(tmp_path: Path) -> None:
    written = write_exercises(ROOT / "solutions", tmp_path / "exercises")
    here = sorted((ROOT / "exercises").glob("*.ipynb"))
    assert [path.name for path in written] == [path.name for path in here]
    for one, other in zip(written, here, strict=True):
        assert one.read_bytes() == other.read_bytes(), f"run `make exercises`: {other.name}"


@each
def test_no_stub_holds_solution_logic(path: Path) -> None:
    """A stub is its signature, its docstring and one raise; nothing of the solution's statements is in the notebook."""
    solved, stubs = nbformat.read(path, as_version=4), nbformat.read(ROOT / "exercises" / path.name, as_version=4)
    stub_functions, everything = functions(stubs), "\n".join(code(stubs))
    unsolved = [name for name, node in stub_functions.items() if isinstance(node.body[-1], ast.Raise)]
    assert {exercise.function for exercise in asked_in(path)} <= set(unsolved)
    for name in unsolved:  # those that are not graded as well
        answer, stub = functions(solved)[name], stub_functions[name]
        assert ast.dump(answer.args) == ast.dump(stub.args)
        assert ast.get_docstring(answer) == ast.get_docstring(stub)
        assert [type(statement) for statement in stub.body] == [ast.Expr, ast.Raise]
        statements = {ast.unparse(node) for node in ast.walk(answer) if isinstance(node, (ast.Return, ast.Assign))}
        assert statements
        assert not [s for s in statements if len(s) > 25 and s in everything]
    assert "SOLUTION" not in everything
    assert "HIDDEN" not in everything


def test_learners_see_no_traces_of_our_tools() -> None:
    for path in (ROOT / "exercises").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "noqa" not in text
        assert "nbgrader" not in text


def test_the_sample_diagnosis_is_what_the_check_returns() -> None:
    first = nbformat.read(ROOT / "exercises" / "01_accept.ipynb", as_version=4)
    assert any(f"```\n{diagnosis()}\n```" in cell.source for cell in first.cells)
    shown = re.sub(r"<[^>]*>", " ", html.unescape((ROOT / "docs" / "diagnosis.svg").read_text(encoding="utf-8")))
    assert set(diagnosis().split()) <= set(shown.split()), "run `make exercises`"
    assert "@font-face" not in picture()


@each
def test_the_hidden_part_of_a_check_takes_nothing_from_the_notebook_but_the_answer(path: Path) -> None:
    cells = code(nbformat.read(path, as_version=4))
    for exercise in asked_in(path):
        cell = next(source for source in cells if source.startswith(f'check("{exercise.name}", '))
        says_yes = {"check": lambda *_: True, "judge": lambda *_: True}
        exec(cell, says_yes | {exercise.function: exercise.reference})
        with pytest.raises(AssertionError):
            exec(cell, says_yes | {exercise.function: lambda *_: None})


def test_the_hidden_part_of_a_check_has_cases_of_its_own() -> None:
    exercise = EXERCISES["residual"]
    seen = [case.arguments[0] for case in exercise.cases(PUBLIC_SEED)]

    def right_in_public(p: Any, q: Any) -> Any:
        return exercise.reference(p, q) if any(torch.equal(p, s) for s in seen) else p

    assert judge(exercise, right_in_public).passed
    cell = next(c for c in code(nbformat.read(ROOT / "solutions" / "02_residual.ipynb", 4)) if c.startswith("check("))
    with pytest.raises(AssertionError):
        exec(cell, {"check": lambda *_: True, "residual": right_in_public})


@each
def test_exercises_hold_no_outputs_and_name_their_minutes(path: Path) -> None:
    notebook = nbformat.read(ROOT / "exercises" / path.name, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    head = notebook.cells[0].source
    asked = asked_in(path)
    assert EXERCISES[path.stem[3:]].title in head
    assert f"**{sum(exercise.minutes for exercise in asked)} minutes**" in head
    for word in ("difficulty", "importance", "**Objective:**"):
        assert word in head
    assert any(cell.source.startswith("## Stretch goal") for cell in notebook.cells)


@each
def test_the_check_comes_in_the_next_cell_and_the_picture_after_it(path: Path) -> None:
    cells = code(nbformat.read(ROOT / "exercises" / path.name, as_version=4))
    for exercise in asked_in(path):
        at = next(i for i, cell in enumerate(cells) if f"def {exercise.function}(" in cell)
        assert cells[at + 1] == f'check("{exercise.name}", {exercise.function})'
        assert cells[at + 2] == f'picture("{exercise.name}", {exercise.function})'
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    assert all(f'`hint("{e.name}")` unfolds {len(e.hints)} hints' in text for e in asked_in(path))


def on_the_map() -> dict[str, list[str]]:
    """Exercise → the lessons in whose row of the course's map it is."""
    found: dict[str, list[str]] = {path.stem[:2]: [] for path in SOLUTIONS}
    rows = "\n".join(
        cell.source for cell in nbformat.read(ROOT / "notebooks" / "00_quickstart.ipynb", as_version=4).cells
    )
    for lesson, asked in re.findall(r"^\| (\d\d) \| .* \|([^|]*)\|$", rows, re.MULTILINE):
        for first, last in re.findall(r"(\d\d)(?: – (\d\d))?", asked):
            for number in range(int(first), int(last or first) + 1):
                found[f"{number:02}"].append(lesson)
    return found


@each
def test_an_exercise_names_the_lessons_that_the_map_gives_it(path: Path) -> None:
    head = nbformat.read(ROOT / "exercises" / path.name, as_version=4).cells[0].source
    said = re.search(r"belongs to lessons? ([\d and,]+)", head)
    assert said
    assert re.findall(r"\d\d", said[1]) == on_the_map()[path.stem[:2]]


def test_a_marker_without_a_partner_is_refused() -> None:
    cell = nbformat.v4.new_code_cell("def f():\n    ### BEGIN SOLUTION\n    return 1\n")
    with pytest.raises(SpecdecError, match="has no partner"):
        exercise_of(nbformat.v4.new_notebook(cells=[cell]))
    assert STUB.startswith("raise NotImplementedError")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["exercises", "solutions"])
def test_notebooks_run_from_top_to_bottom(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells of all notebooks in one kernel: solved ones pass, unsolved ones say so and raise nothing."""
    from nbclient import NotebookClient

    monkeypatch.setenv("SPECDEC_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setenv("SPECDEC_LIVE", "0")
    cells = [
        cell
        for path in sorted((ROOT / folder).glob("*.ipynb"))
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    ]
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "No picture" not in printed
    pictures = sum('picture("' in cell.source for cell in cells)
    assert printed.count("Nothing to show yet") == (pictures if folder == "exercises" else 0)
    if folder == "solutions":
        noted = json.loads((tmp_path / "progress.json").read_text())
        assert {name for name, entry in noted.items() if entry["outcome"] == "passed"} == set(EXERCISES)
    else:
        said = [str(o.get("data", {}).get("text/plain", "")) for cell in cells for o in cell.outputs]
        assert sum("not attempted" in text for text in said) == len(EXERCISES)


def test_the_page_of_diagnoses_is_up_to_date() -> None:
    assert (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8") == page(), (
        "run `python -m specdec_lab.teaching.exercises.matrix > docs/exercises.md`"
    )
