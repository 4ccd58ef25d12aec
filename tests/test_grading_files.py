"""Whatever lies in a class folder, everybody in it is graded, and the reports are written."""

import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hostile import RIGHT
from submissions import notebook
from typer.testing import CliRunner

from specdec_lab.cli.main import app
from specdec_lab.teaching.exercises import grading, handed_in
from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.defining import defines, mentions
from specdec_lab.teaching.exercises.grading import LARGEST, Graded, grade_folder, sources_of
from specdec_lab.teaching.exercises.trusted import Trusted
from specdec_ref.errors import SpecdecError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names and files as Linux has them")


@pytest.fixture(autouse=True)
def residual_only_and_without_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = grading.grade_submission

    def short(name: str, *rest: Any, **more: Any) -> Graded:
        return whole(name, *rest, **more, exercises=[EXERCISES["residual"]])

    monkeypatch.setattr(grading, "grade_submission", short)
    monkeypatch.setattr(grading, "Sandbox", lambda hidden: Trusted())


def graded_with(folder: Path, out: Path) -> dict[str, Graded]:
    """A class in which only b hands in the right answer."""
    notebook(folder / "b", RIGHT)
    graded = {one.submission: one for one in grade_folder(folder, out, jobs=1)}
    assert graded["b"].score == 10
    with (out / "scores.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(graded)
    return graded


def test_a_file_of_200_gb_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "class" / "a" / "answer.ipynb"
    path.parent.mkdir(parents=True)
    path.touch()
    try:
        os.truncate(path, 200 << 30)
    except OSError:
        pytest.skip("files cannot be so large here")
    verdict = graded_with(tmp_path / "class", tmp_path / "out")["a"].verdicts[0]
    assert (verdict.outcome, verdict.diagnosis) == ("crashed", "no-notebook")
    assert verdict.headline.startswith("answer.ipynb: is larger than 5 MB; clear its outputs")


def test_a_notebook_may_have_5_mb_and_no_more(tmp_path: Path) -> None:
    path = notebook(tmp_path, "x = 1")
    path.write_bytes(path.read_bytes().ljust(LARGEST))
    assert sources_of(path) == ["x = 1"]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(SpecdecError, match=r"answer.ipynb: is larger than 5 MB"):
        sources_of(path)


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    path = notebook(tmp_path / "class" / "a", RIGHT)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    verdict = graded_with(tmp_path / "class", tmp_path / "out")["a"].verdicts[0]
    assert verdict.headline == "answer.ipynb: cannot be read (Permission denied)"


def test_a_file_that_cannot_be_read_now_is_graded_once_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its other notebooks the submission has its points in any case."""
    notebook(tmp_path / "class" / "a", RIGHT)
    both = notebook(tmp_path / "class" / "c", RIGHT).parent
    notebook(both, RIGHT, name="broken.ipynb")
    read = handed_in.read_notebook

    def fails(path: Path) -> bytes:
        if path.parent.name == "a" or path.name == "broken.ipynb":
            raise OSError(5, "Input/output error")
        return read(path)

    with monkeypatch.context() as patch:
        for module in (grading, handed_in):
            patch.setattr(module, "read_notebook", fails)
        graded = graded_with(tmp_path / "class", tmp_path / "out")
    assert graded["a"].verdicts[0].headline == "answer.ipynb: cannot be read (Input/output error)"
    assert graded["a"].verdicts[0].diagnosis == "no-notebook"
    assert graded["c"].score == 10
    assert graded_with(tmp_path / "class", tmp_path / "out")["a"].score == 10


def test_names_that_are_no_utf_8_are_graded_and_reported(tmp_path: Path) -> None:
    student, name = os.fsdecode(b"m\xfcller"), os.fsdecode(b"l\xf6sung.ipynb")
    try:
        notebook(tmp_path / "class" / student, RIGHT, name=name)
    except OSError:
        pytest.skip("names are UTF-8 here")
    (tmp_path / "class" / "a").mkdir()
    (tmp_path / "class" / "a" / name).write_text("no notebook")
    out = tmp_path / "out"
    graded = graded_with(tmp_path / "class", out)
    assert graded[student].score == 10
    assert graded["a"].verdicts[0].headline.endswith("is not a notebook (JSONDecodeError)")
    assert json.loads((out / "reports" / student / "results.json").read_text(encoding="utf-8"))["score"] == 10
    with (out / "scores.csv").open(encoding="utf-8") as file:
        assert {row["submission"]: row["score"] for row in csv.DictReader(file)} == {
            "a": "0",
            "b": "10",
            r"m\udcfcller": "10",
        }
    assert {one.submission: one for one in grade_folder(tmp_path / "class", out, jobs=1)} == graded  # as recorded


def test_names_of_folders_are_shown_as_they_are_and_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    for name in (os.fsdecode(b"m\xfcller"), "[red]anna", "b\x1b[2J"):
        try:
            notebook(tmp_path / "class" / name, RIGHT)
        except OSError:
            pytest.skip("names are UTF-8 here")
    said = CliRunner().invoke(app, ["grade", str(tmp_path / "class"), "--jobs", "1"])
    assert said.exit_code == 0, said.exception
    assert r"m\udcfcller" in said.output
    assert "[red]anna" in said.output
    assert "\x1b[2J" not in said.output


@pytest.mark.slow
def test_a_run_that_is_broken_off_ends_with_what_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def slowly(name: str, *_: Any, **__: Any) -> Graded:
        asked.append(name)
        time.sleep(0.2)
        return Graded(name, ())

    def broken_off(done: int, of: int) -> None:
        raise KeyboardInterrupt

    for i in range(20):
        notebook(tmp_path / "class" / f"{i:02}", RIGHT)
    monkeypatch.setattr(grading, "grade_submission", slowly)
    with pytest.raises(KeyboardInterrupt):
        grade_folder(tmp_path / "class", tmp_path / "out", jobs=1, on_graded=broken_off)
    begun = len(asked)
    assert begun < 10
    assert len((tmp_path / "out" / "graded.jsonl").read_text(encoding="utf-8").splitlines()) == begun
    assert len(grade_folder(tmp_path / "class", tmp_path / "out", jobs=1)) == 20
    assert sorted(asked) == [f"{i:02}" for i in range(20)]


@pytest.mark.parametrize(
    ("line", "looks"),
    [
        ("def residual(p, q):", True),
        ("    async  def residual(p, q):", True),
        ("class residual:", True),
        ("residual = lambda p, q: p", True),
        ("  residual : Any = f", True),
        ("from helpers import left, residual", True),
        ("import residual", True),
        ("def residuals(p, q):", False),
        ("residual == 1", False),
        ("residuals = 1", False),
        ("check('residual', residual)", False),
        ("from helpers import residuals, a_residual", False),
        ("important = 'residual'", False),
        ("from residual import left", False),
        ("residual(p, q=1)", False),
        ("mine = residual = lambda p, q: p", True),
        ("residual = mine = f", True),
        ("first, residual = f, g", True),
        ("[first, (second, *residual)] = f, g", True),
        ("print(residual := f)", True),
        ("if (residual := f):", True),
        ("with given() as residual:", True),
        ("with a() as b, c() as (left, residual):", True),
        ("for residual in [f]:", True),
        ("for i, residual in enumerate([f]): pass", True),
        ("import helpers as residual", True),
        ("from helpers import f as residual", True),
        ("except Exception as residual:", True),
        ("if True: residual = f", True),
        ("x = 1; residual = f", True),
        ("    residual = f", True),
        ("residual: Any", False),
        ("residual.name = 1", False),
        ("residual[0] = 1", False),
        ("a.residual = 1", False),
        ("check('residual', residual, k=1)", False),
        ("f = lambda residual=1: 0", False),
        ("from helpers import residual as f", False),
        ("# residual = f", False),
        ("for i in residual:", False),
        ("if residual == f: x = 1", False),
        ("def other(p, residual=1):", False),
    ],
)
def test_a_cell_is_looked_at_for_the_name_that_it_may_define(line: str, looks: bool) -> None:
    assert defines(f"x = 1\n{line}\ny = 2", "residual") is looks


def test_a_name_inside_of_another_function_is_not_the_notebook_s() -> None:
    assert not defines("def other():\n    def residual(p, q):\n        return p\n    residual = 1\nx = 1", "residual")
    assert defines("def other():\n    pass\ntry:\n    def residual(p, q):\n        return p\n", "residual")


@pytest.mark.timed
@pytest.mark.parametrize(
    "source",
    [
        "x = '" + "import " * 700_000 + "residuals'",
        "import " + "residuals, " * 400_000,
        "residual" + " " * 4_000_000 + "residuals",
        "residual:" * 500_000,
        "residual.=" * 400_000,
        "as (residuals, " * 280_000,
        "residual(" * 450_000 + "=",
        "async " * 600_000 + "residuals",
        "\n" * 4_000_000 + "residuals",
    ],
    ids=lambda source: f"{source[:10]!r}",
)
def test_looking_at_a_cell_takes_no_longer_than_its_text_is_long(source: str) -> None:
    began = time.process_time()
    assert not defines(source, "residual")
    mentions([source], "residual")
    assert time.process_time() - began < 5
