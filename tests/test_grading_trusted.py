"""One's own work, graded in this process: a notebook's cells run once, quietly, and touch nothing of the learner's."""

import json
import os
from pathlib import Path

import pytest
from hostile import RIGHT
from submissions import notebook
from typer.testing import CliRunner

from specdec_ref.cli import app
from specdec_ref.teaching.checks.catalogue import EXERCISES
from specdec_ref.teaching.checks.grading import grade_folder, grade_submission
from specdec_ref.teaching.checks.trusted import Trusted

ROOT = Path(__file__).parents[1]
VERDICT = "def accepts(p, q, u):\n    return u < p / q"


def test_cells_run_once_however_many_exercises_they_answer(tmp_path: Path) -> None:
    log = tmp_path / "log"
    counts = f"open({str(log)!r}, 'a').write('x')"
    path = notebook(tmp_path, counts, RIGHT, VERDICT, "def speedup(*_):\n    return 1.0")
    graded = grade_submission("me", [path], Trusted())
    assert graded.score == 20
    assert log.read_text() == "x"


def test_each_notebook_runs_for_itself(tmp_path: Path) -> None:
    paths = [notebook(tmp_path, "mine = 1", RIGHT), notebook(tmp_path, f"{VERDICT} + 0 * mine", name="b.ipynb")]
    graded = {v.exercise: v for v in grade_submission("me", paths, Trusted()).verdicts}
    assert graded["residual"].passed
    assert "NameError" in graded["accept"].headline


def test_checks_in_cells_note_nothing_and_servers_are_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECDEC_PROGRESS", str(tmp_path / "mine.json"))
    monkeypatch.delenv("SPECDEC_LIVE", raising=False)
    asks = "import os\nlive = os.environ['SPECDEC_LIVE']\n"
    checks = "from specdec_ref.teaching.checks import check\ncheck('residual', residual)\nchecked = True\n"
    last = (
        "def residual(p, q):\n    assert checked and live == os.environ['SPECDEC_LIVE'] == '0'\n    return right(p, q)"
    )
    path = notebook(tmp_path, asks, RIGHT, checks, "right = residual", last)
    graded = grade_submission("me", [path], Trusted(), exercises=[EXERCISES["residual"]])
    assert graded.score == 10, graded
    assert not (tmp_path / "mine.json").exists()
    assert os.environ["SPECDEC_PROGRESS"] == str(tmp_path / "mine.json")
    assert "SPECDEC_LIVE" not in os.environ


def test_what_cells_and_answers_print_does_not_get_into_the_report(tmp_path: Path) -> None:
    loud = RIGHT.replace("    rest", "    print('in the answer \\udcff')\n    rest", 1)
    path = notebook(tmp_path, "print('in a cell')", loud)
    said = CliRunner().invoke(app, ["grade", str(path), "--trusted", "--json"])
    assert json.loads(said.stdout)[0]["score"] == 10


@pytest.mark.slow
def test_all_solutions_pass_as_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [graded] = grade_folder(ROOT / "solutions", tmp_path / "out", trusted=True)
    assert [v.exercise for v in graded.verdicts if not v.passed] == []
    assert capsys.readouterr().out == ""
