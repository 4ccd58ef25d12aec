"""Class folders with more than honest work: no score changes, no submission is lost, and reports give the reasons."""

import csv
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import RIGHT, TARGET
from submissions import notebook
from typer.testing import CliRunner

from specdec_lab.cli.main import app
from specdec_lab.teaching.exercises import grading, trusted
from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.grading import Graded, grade_folder, grade_submission
from specdec_lab.teaching.exercises.handed_in import COURSE_NOTEBOOKS
from specdec_lab.teaching.exercises.judgement import BUGS
from specdec_lab.teaching.exercises.trusted import Trusted
from specdec_ref.errors import SpecdecError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names and links as Linux has them")

ROOT = Path(__file__).parents[1]
ACCEPTS = "def accepts(p, q, u):\n    return u < p / q"
WITHOUT = "mine.ipynb counts for this exercise; without an answer: 02_residual.ipynb"
STUB = "def residual(p, q):\n    raise NotImplementedError('your code here')"


@pytest.fixture(autouse=True)
def residual_only_and_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = grading.grade_submission

    def short(name: str, *rest: Any, **more: Any) -> Graded:
        return whole(name, *rest, **more, exercises=[EXERCISES["residual"]])

    monkeypatch.setattr(grading, "grade_submission", short)
    monkeypatch.setattr(grading, "Sandbox", lambda hidden: Trusted())


def graded(folder: Path, out: Path | None = None, **how: Any) -> dict[str, Graded]:
    return {one.submission: one for one in grade_folder(folder, out, jobs=1, **how)}


def scores(folder: Path, out: Path | None = None, **how: Any) -> dict[str, int]:
    return {name: one.score for name, one in graded(folder, out, **how).items()}


def report(path: Path) -> str:
    """All words of a results.json."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return "\n".join([found["output"], *(test["output"] for test in found["tests"])])


# Links


def test_a_submission_that_is_a_link_to_another_folder_gets_nothing(tmp_path: Path) -> None:
    notebook(tmp_path / "class" / "me", RIGHT)
    os.symlink(tmp_path / "class" / "me", tmp_path / "class" / "thief")
    out = tmp_path / "out"
    assert scores(tmp_path / "class", out) == {"me": 10, "thief": 0}
    assert "the submission is a symbolic link, which is not followed" in report(out / "reports/thief/results.json")


def test_the_only_folder_of_a_submission_is_not_followed_where_it_is_a_link(tmp_path: Path) -> None:
    notebook(tmp_path / "solutions", RIGHT)
    (tmp_path / "submission").mkdir()
    os.symlink(tmp_path / "solutions", tmp_path / "submission" / "mine")
    for how in ({}, {"single": True}):
        out = tmp_path / f"out{len(how)}"
        assert list(scores(tmp_path / "submission", out, **how).values()) == [0]
        assert "is a symbolic link, which is not followed" in report(out / "results.json")


def test_a_link_inside_of_a_submission_is_not_followed(tmp_path: Path) -> None:
    notebook(tmp_path / "solutions", RIGHT)
    notebook(tmp_path / "class" / "thief", "x = 1", name="empty.ipynb")
    os.symlink(tmp_path / "solutions", tmp_path / "class" / "thief" / "work")
    os.symlink(tmp_path / "solutions" / "answer.ipynb", tmp_path / "class" / "thief" / "mine.ipynb")
    out = tmp_path / "out"
    assert scores(tmp_path / "class", out) == {"thief": 0}
    said = report(out / "results.json")
    assert "mine.ipynb is a symbolic link, which is not followed" in said
    assert "work is a symbolic link, which is not followed" in said


def test_a_link_is_not_graded_where_it_is_named_on_the_command_line(tmp_path: Path) -> None:
    notebook(tmp_path / "solutions", RIGHT)
    os.symlink(tmp_path / "solutions", tmp_path / "thief")
    os.symlink(tmp_path / "solutions" / "answer.ipynb", tmp_path / "thief.ipynb")
    for name in ("thief", "thief.ipynb"):
        with pytest.raises(SpecdecError, match="is a symbolic link, which is not followed"):
            grade_folder(tmp_path / name)


def test_a_link_to_a_file_is_no_student(tmp_path: Path) -> None:
    path = notebook(tmp_path / "solutions", RIGHT)
    for name in ("only", "class"):
        (tmp_path / name).mkdir()
        os.symlink(path, tmp_path / name / "mine.ipynb")
    notebook(tmp_path / "class" / "honest", RIGHT)
    assert scores(tmp_path / "class") == {"honest": 10}
    out = tmp_path / "out"
    assert scores(tmp_path / "only", out) == {"only": 0}
    assert "mine.ipynb is a symbolic link, which is not followed" in report(out / "results.json")


# Depth


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A class with one honest student, removed without recursion."""
    notebook(tmp_path / "class" / "honest", RIGHT)
    yield tmp_path / "class"
    subprocess.run(["rm", "-rf", str(tmp_path / "class")], check=True)


def folders_in_each_other(top: Path, name: str, number: int) -> None:
    """More of them than a path can name."""
    top.mkdir(parents=True)
    here = os.open(top, os.O_RDONLY)
    for _ in range(number):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("d", 1100, "folders more than 20 deep are not searched"),
        ("d" * 250, 18, "cannot be searched (File name too long)"),
    ],
)
def test_a_folder_that_cannot_be_searched_to_its_end_costs_nobody_else_anything(
    name: str, number: int, said: str, deep: Path, tmp_path: Path
) -> None:
    folders_in_each_other(deep / "them", name, number)
    assert scores(deep, tmp_path / "out") == {"honest": 10, "them": 0}
    assert said in report(tmp_path / "out" / "reports" / "them" / "results.json")
    notebook(deep / "them", RIGHT)  # what can be found counts
    assert scores(deep, tmp_path / "out") == {"honest": 10, "them": 10}
    assert said in report(tmp_path / "out" / "reports" / "them" / "results.json")


def test_no_more_than_some_files_of_a_submission_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdec_lab.teaching.exercises import handed_in

    monkeypatch.setattr(handed_in, "MOST_ENTRIES", 30)
    notebook(tmp_path / "class" / "honest", RIGHT)
    for i in range(40):
        (tmp_path / "class" / "them" / f"{i}").mkdir(parents=True)
    found = graded(tmp_path / "class")
    assert found["honest"].score == 10
    assert found["them"].notes == ("has more than 30 files and folders; the rest is not searched",)


# Names


def test_a_student_may_be_called_as_the_grader_s_own_files(tmp_path: Path) -> None:
    names = ["graded.jsonl", "results.json", "scores.csv", "reports", "zoe"]
    for name in names:
        notebook(tmp_path / "class" / name, RIGHT)
    out = tmp_path / "out"
    for _ in range(2):  # the second time from what was recorded
        assert scores(tmp_path / "class", out) == dict.fromkeys(names, 10)
        with (out / "scores.csv").open(encoding="utf-8") as file:
            assert {row["submission"]: row["score"] for row in csv.DictReader(file)} == dict.fromkeys(names, "10")
        for name in names:
            assert json.loads((out / "reports" / name / "results.json").read_text())["score"] == 10


def test_a_report_that_cannot_be_written_costs_nobody_else_theirs(tmp_path: Path) -> None:
    for name in "abc":
        notebook(tmp_path / "class" / name, RIGHT)
    out = tmp_path / "out"
    (out / "reports").mkdir(parents=True)
    (out / "reports" / "b").write_text("a file, where a folder is needed")
    with pytest.raises(SpecdecError, match=r"results.json cannot be written"):
        grade_folder(tmp_path / "class", out, jobs=1)
    for name in "ac":
        assert (out / "reports" / name / "results.json").is_file()
    assert (out / "scores.csv").is_file()


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", "\tx", "  =1", "\uff1d1"])
def test_a_name_that_a_spreadsheet_would_run_is_escaped_in_the_table(name: str, tmp_path: Path) -> None:
    notebook(tmp_path / "class" / name, RIGHT)
    os.symlink(tmp_path, tmp_path / "class" / name / "=1.ipynb")
    notebook(tmp_path / "class" / "plain", RIGHT)
    out = tmp_path / "out"
    assert scores(tmp_path / "class", out) == {name: 10, "plain": 10}
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"'" + name, "plain"}
    assert rows["'" + name]["notes"].startswith("'=1.ipynb is a symbolic link")
    assert rows["plain"]["notes"] == ""


# Which notebook counts


def find_bug(folder: Path, notebooks: list[Path]) -> Any:
    """The verdict on find_bug, with all cases."""
    return grade_submission("them", notebooks, Trusted(), exercises=[EXERCISES["find_bug"]]).verdicts[0]


def test_all_permutations_in_a_notebook_each_do_not_pass(tmp_path: Path) -> None:
    def answer(bugs: tuple[str, ...]) -> str:
        return f"def findings():\n    return {dict(zip('ABC', bugs, strict=True))!r}"

    every = list(itertools.permutations(BUGS, 3))
    assert len(every) == 60
    paths = [notebook(tmp_path, answer(bugs), name=f"{i:02}.ipynb") for i, bugs in enumerate(every)]
    assert sum(find_bug(tmp_path, [path]).passed for path in paths) == 1  # one of them is right
    verdict = find_bug(tmp_path, paths)
    assert verdict.outcome == "wrong"
    assert "00.ipynb counts for this exercise; ignored: 01.ipynb, 02.ipynb, 03.ipynb and 56 more" in verdict.note


@pytest.mark.parametrize(
    ("notebooks", "score", "note"),
    [
        ({"02_residual": RIGHT, "01": TARGET}, 10, "02_residual.ipynb counts for this exercise; ignored: 01.ipynb"),
        ({"02_residual": TARGET, "01": RIGHT}, 0, "02_residual.ipynb counts for this exercise; ignored: 01.ipynb"),
        ({"a": RIGHT, "b": TARGET}, 10, "a.ipynb counts for this exercise; ignored: b.ipynb"),
        ({"b": RIGHT, "a": TARGET}, 0, "a.ipynb counts for this exercise; ignored: b.ipynb"),
        ({"z": RIGHT, "old/a": TARGET}, 10, "z.ipynb counts for this exercise; ignored: old/a.ipynb"),
        (
            {"old/02_residual": RIGHT, "z": TARGET},
            10,
            "old/02_residual.ipynb counts for this exercise; ignored: z.ipynb",
        ),
        ({"02_residual": STUB, "mine": RIGHT}, 10, WITHOUT),  # what is still to be written does not count
        ({"02_residual": STUB + "(", "mine": RIGHT}, 10, WITHOUT),  # nor what fails before it is defined
        ({"02_residual": STUB, "mine": RIGHT, "z": TARGET}, 10, f"{WITHOUT}; ignored: z.ipynb"),
        ({"02_residual": "check('residual', residual)", "mine": RIGHT}, 10, ""),
    ],
)
def test_one_notebook_counts_for_an_exercise(notebooks: dict[str, str], score: int, note: str, tmp_path: Path) -> None:
    for name, source in notebooks.items():
        path = tmp_path / "class" / "me" / f"{name}.ipynb"
        notebook(path.parent, source, name=path.name)
    [one] = graded(tmp_path / "class").values()
    assert (one.score, one.verdicts[0].note) == (score, note)


def test_the_course_s_own_file_names_are_those_of_the_solutions() -> None:
    assert sorted(COURSE_NOTEBOOKS) == sorted(path.stem for path in (ROOT / "solutions").glob("*.ipynb"))
    for stem, exercises in COURSE_NOTEBOOKS.items():
        text = (ROOT / "solutions" / f"{stem}.ipynb").read_text(encoding="utf-8")
        assert all(f"def {EXERCISES[name].function}(" in text for name in exercises)
    assert sorted(itertools.chain(*COURSE_NOTEBOOKS.values())) == sorted(EXERCISES)


@pytest.mark.parametrize(
    "source",
    [
        f"{ACCEPTS}\nmine = accepts = accepts",
        "mine = accepts = lambda p, q, u: u < p / q",
        "first, (accepts, second) = 1, (lambda p, q, u: u < p / q, 2)",
        "print(accepts := lambda p, q, u: u < p / q)",
        "for accepts in [lambda p, q, u: u < p / q]:\n    pass",
        "import contextlib\nwith contextlib.nullcontext(lambda p, q, u: u < p / q) as accepts:\n    pass",
        "try:\n    if True:\n        def accepts(p, q, u):\n            return u < p / q\nfinally:\n    pass",
        "accepts \\\n    = lambda p, q, u: u < p / q",
        "globals()['accepts'] = lambda p, q, u: u < p / q",
        "def make():\n    global accepts\n    def accepts(p, q, u):\n        return u < p / q\nmake()",
        "exec('def accepts(p, q, u):\\n    return u < p / q')",
    ],
)
def test_a_function_is_found_however_it_is_defined(source: str, tmp_path: Path) -> None:
    found = grade_submission("me", [notebook(tmp_path, source)], Trusted(), exercises=[EXERCISES["accept"]])
    assert found.score == 10, found


def test_a_name_that_is_only_used_is_reported_as_not_defined(tmp_path: Path) -> None:
    path = notebook(tmp_path, "check('accept', accepts)", "accepted = 'accepts at u = p/q'")
    found = grade_submission("me", [path], Trusted(), exercises=[EXERCISES["accept"]])
    assert found.verdicts[0].headline == "no notebook defines the function accepts"


# Broken notebooks


def test_each_exercise_names_its_own_notebook_s_fault(tmp_path: Path) -> None:
    paths = [notebook(tmp_path, ACCEPTS, name=f"{stem}.ipynb") for stem in ("01_accept", "02_residual", "03_speedup")]
    paths[1].write_text("no JSON")
    paths[2].write_text("{}")
    asked = [EXERCISES[name] for name in ("accept", "residual", "speedup", "rewind")]
    found = grade_submission("me", paths, Trusted(), exercises=asked)
    assert [v.headline for v in found.verdicts[1:]] == [
        "02_residual.ipynb: is not a notebook (JSONDecodeError)",
        "03_speedup.ipynb: is not a notebook (KeyError)",
        "no notebook defines the function lengths_after",
    ]
    assert found.score == 10
    assert found.notes == tuple(v.headline for v in found.verdicts[1:3])


def test_broken_notebooks_with_names_of_their_own_are_all_named(tmp_path: Path) -> None:
    paths = [notebook(tmp_path, RIGHT, name=f"{name}.ipynb") for name in "abcde"]
    for path in paths[:4]:
        path.write_text("no JSON")
    asked = [EXERCISES[name] for name in ("residual", "accept")]
    found = grade_submission("me", paths, Trusted(), exercises=asked)
    assert found.verdicts[0].passed
    said = "; ".join(f"{name}.ipynb: is not a notebook (JSONDecodeError)" for name in "abc")
    assert found.verdicts[1].headline == f"{said}; and 1 more"


def test_the_remedy_for_large_outputs_is_named(tmp_path: Path) -> None:
    path = notebook(tmp_path, RIGHT)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * 6_000_000}]
    path.write_text(json.dumps(content), encoding="utf-8")
    found = grade_submission("me", [path], Trusted(), exercises=[EXERCISES["residual"]])
    assert "larger than 5 MB; clear its outputs" in found.verdicts[0].headline
    assert "submit it again" in found.notes[0]


def test_a_notebook_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = notebook(tmp_path, RIGHT)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert scores(tmp_path) == {tmp_path.name: 10}


def test_code_without_end_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "MOST_CODE", 2_000_000)
    paths = [notebook(tmp_path, "#" * 900_000, name=f"{i}.ipynb") for i in range(4)]
    paths.append(notebook(tmp_path, RIGHT, name="last.ipynb"))
    run = grading.SubmissionRun(paths, Trusted(), [0])
    assert sum(one.code() for one in run.notebooks.values()) < 2_000_000
    assert run.unreadable() == [f"{i}.ipynb: not read; the submission has more than 2 MB of code" for i in (2, 3)]
    assert run.verdict(EXERCISES["residual"]).passed


def test_cells_that_never_end_are_no_answer_to_what_they_only_mention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trusted, "SECONDS", 0.5)
    stub = notebook(tmp_path, STUB, name="02_residual.ipynb")
    loop = notebook(tmp_path, "residual\nwhile True:\n    pass", name="loop.ipynb")
    found = grade_submission("me", [stub, loop], Trusted(), exercises=[EXERCISES["residual"]])
    assert found.verdicts[0].outcome == "not attempted"
    answer = notebook(tmp_path, f"while True:\n    pass\n{RIGHT}", name="loop.ipynb")
    found = grade_submission("me", [stub, answer], Trusted(), exercises=[EXERCISES["residual"]])
    assert (found.verdicts[0].diagnosis, found.verdicts[0].note) == ("endless", "in loop.ipynb")


# Class folders


def test_a_loose_notebook_does_not_hide_the_students(tmp_path: Path) -> None:
    folder = tmp_path / "class"
    notebook(folder, TARGET, name="notes.ipynb")
    for i in range(17):
        notebook(folder / f"{i:02}", RIGHT)
    assert scores(folder) == {f"{i:02}": 10 for i in range(17)}
    said = CliRunner().invoke(app, ["grade", str(folder), "--jobs", "1"])
    assert "not graded: notes.ipynb, outside the students' folders; if class is one submission" in said.output
    assert scores(folder, single=True) == {"class": 0}  # the one at the top counts


def test_what_archives_and_editors_leave_behind_is_no_student(tmp_path: Path) -> None:
    folder = tmp_path / "class"
    notebook(folder / "me", RIGHT)
    for name in ("__MACOSX", ".ipynb_checkpoints", ".hidden", "__pycache__"):
        notebook(folder / name / "me", TARGET)
        notebook(folder / "me" / name, TARGET, name="02_residual.ipynb")
    (folder / ".DS_Store").write_text("")
    (folder / "me" / "._answer.ipynb").write_bytes(b"\0\5\26\7")
    out = tmp_path / "out"
    found = graded(folder, out)
    assert {name: one.score for name, one in found.items()} == {"me": 10}
    assert found["me"].notes == ()
    assert json.loads((out / "results.json").read_text(encoding="utf-8"))["score"] == 10  # a single one, for Gradescope


def test_gradescope_finds_the_report_of_a_single_submission_whatever_folders_it_has(tmp_path: Path) -> None:
    notebook(tmp_path / "submission", RIGHT)
    notebook(tmp_path / "submission" / "old", TARGET)
    (tmp_path / "empty").mkdir()
    for folder, score in (("submission", 10), ("empty", 0)):
        results = tmp_path / folder / "results"
        CliRunner().invoke(app, ["grade", str(tmp_path / folder), "--single", "--out", str(results), "--jobs", "1"])
        assert json.loads((results / "results.json").read_text(encoding="utf-8"))["score"] == score


@pytest.mark.parametrize("out", ["reports", "results/today"])
def test_reports_inside_of_the_class_are_no_student(out: str, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    for name in ("a", "b"):
        notebook(folder / name, RIGHT)
    for _ in range(2):
        assert scores(folder, folder / out) == {"a": 10, "b": 10}
    if "/" not in out:
        assert scores(folder) == {"a": 10, "b": 10}  # nor where they are an earlier run's
    with pytest.raises(SpecdecError, match="is the class folder itself"):
        grade_folder(folder, folder)
