"""One's own work, graded in this process: a notebook's cells run once, quietly, and touch nothing of the learner's."""

import json
import os
from pathlib import Path

import pytest
from hostile import RIGHT
from submissions import notebook
from typer.testing import CliRunner

from specdec_lab.cli.main import app
from specdec_lab.teaching.exercises import judging, trusted
from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.grading import grade_folder, grade_submission
from specdec_lab.teaching.exercises.trusted import Trusted

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
    checks = "from specdec_lab.teaching.exercises import check\ncheck('residual', residual)\nchecked = True\n"
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


CHECKS = "from specdec_lab.teaching.exercises import check, hint, picture, progress, solution\n"


@pytest.mark.parametrize(
    "calls",
    [
        "picture('decode_speedup', slow)",
        "check('speedup', slow)",
        "from specdec_lab.teaching.exercises.pictures import picture as draw\ndraw('decode_speedup', slow)",
        "from specdec_lab.teaching.exercises.catalogue import exercise_named\n"
        "from specdec_lab.teaching.exercises.judging import judge\n"
        "verdict = judge(exercise_named('speedup'), slow)\nassert verdict.passed, verdict.headline",
        "if not check('speedup', slow):\n    raise AssertionError",
    ],
)
def test_pictures_and_checks_in_cells_take_none_of_the_time(
    calls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may take two minutes on a busy machine, which is as long as all cells may take together."""
    monkeypatch.setattr(trusted, "SECONDS", 1.0)
    slow = f"{CHECKS}import time\ndef slow(*_):\n    time.sleep(60)\n"
    path = notebook(tmp_path, slow + calls + "\ncalled = True", f"assert called\n{RIGHT}")
    graded = grade_submission("me", [path], Trusted(), exercises=[EXERCISES["residual"]])
    assert graded.score == 10, graded


def test_checks_work_again_after_grading(tmp_path: Path) -> None:
    from specdec_lab.teaching import exercises as checks

    grade_submission("me", [notebook(tmp_path, RIGHT)], Trusted(), exercises=[EXERCISES["residual"]])
    assert checks.check("accept", lambda p, q, u: u < p / q)
    assert judging.judge(EXERCISES["accept"], lambda p, q, u: u < p / q).passed


def test_cells_and_answers_have_variables_and_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer reads what its own cells set; neither the next notebook nor the grader's process does."""
    monkeypatch.setenv("SPECDEC_GIVEN", "given")
    folder = os.getcwd()
    sets = "import os\nos.environ['SPECDEC_CELL'] = '0'\nos.environ['SPECDEC_GIVEN'] = 'changed'\nos.chdir('/')"
    reads = "import os\ndef accepts(p, q, u):\n    os.environ['SPECDEC_ANSWER'] = '1'\n"
    reads += "    return u < p / q + float(os.environ['SPECDEC_CELL'])"
    other = RIGHT.replace("import torch\n", "import os, torch\nassert os.environ['SPECDEC_GIVEN'] == 'given'\n")
    other = other.replace(
        "    rest", "    assert not {'SPECDEC_CELL', 'SPECDEC_ANSWER'} & os.environ.keys()\n    rest", 1
    )
    second = "def speedup(alpha, k, c, v):\n    return float(os.environ['SPECDEC_CELL'])"
    paths = [notebook(tmp_path, sets, reads, second), notebook(tmp_path, other, name="b.ipynb")]
    asked = [EXERCISES[name] for name in ("accept", "residual", "speedup")]
    graded = {v.exercise: v for v in grade_submission("me", paths, Trusted(), exercises=asked).verdicts}
    assert graded["accept"].passed, graded
    assert graded["residual"].passed, graded
    assert graded["speedup"].yours == "0"
    assert os.environ["SPECDEC_GIVEN"] == "given"
    assert not {"SPECDEC_CELL", "SPECDEC_ANSWER"} & os.environ.keys()
    assert os.getcwd() == folder


@pytest.mark.slow
def test_all_solutions_pass_as_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [graded] = grade_folder(ROOT / "solutions", tmp_path / "out", trusted=True)
    assert [v.exercise for v in graded.verdicts if not v.passed] == []
    assert capsys.readouterr().out == ""
