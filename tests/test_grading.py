"""Grading from outside: by names, in processes of their own. Hostile submissions change no score and stop no run."""

import csv
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from specdec_ref.cli import app
from specdec_ref.errors import SpecdecError
from specdec_ref.teaching.checks import sandbox as box
from specdec_ref.teaching.checks.catalogue import EXERCISES
from specdec_ref.teaching.checks.grading import grade_folder, grade_submission, sources_of
from specdec_ref.teaching.checks.sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="grading strangers' code needs Linux")

ROOT = Path(__file__).parents[1]
RESIDUAL = EXERCISES["residual"]
RIGHT = """import torch
def residual(p, q):
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)
"""
TARGET = "def residual(p, q):\n    return p\n"
SECRET = str(ROOT / "solutions" / "02_residual.ipynb")

HOSTILE = {
    "exit": "import os\nos._exit(0)",
    "sys-exit": "import sys\nsys.exit(0)",
    "exit-in-call": "import os\ndef residual(p, q):\n    os._exit(0)",
    "raise-system-exit": "def residual(p, q):\n    raise SystemExit",
    "kill-self": "import os, signal\ndef residual(p, q):\n    os.kill(os.getpid(), signal.SIGKILL)",
    "kill-parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n" + TARGET,
    "kill-everybody": "import os, signal\ntry:\n    os.kill(-1, signal.SIGKILL)\nexcept OSError:\n    pass\n" + TARGET,
    "fork-bomb": "import os\nfor _ in range(12):\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    + TARGET,
    "memory": "def residual(p, q):\n    return bytearray(1 << 36)",
    "memory-bit-by-bit": "def residual(p, q):\n    held = []\n    while True:\n        held.append(bytearray(1 << 26))",
    "endless-output": "def residual(p, q):\n    while True:\n        print('x' * 100000)",
    "endless-loop": "while True:\n    pass",
    "sleeps": "import time\ndef residual(p, q):\n    time.sleep(3600)",
    "sleeping-thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()\n" + TARGET,
    "recursion": "def residual(p, q):\n    return residual(p, q)",
    "deep-answer": "def residual(p, q):\n    x = []\n    for _ in range(100000):\n        x = [x]\n    return x",
    "huge-answer": "import torch\ndef residual(p, q):\n    return torch.zeros(3000, 3000)",
    "huge-file": "with open('big', 'wb') as f:\n    for _ in range(10000):\n        f.write(bytes(1 << 20))\n" + TARGET,
    "patched-checker": (
        "import specdec_ref.teaching.checks.judging as j, torch\n"
        "j.same = j.judge = lambda *a, **k: True\ntorch.allclose = lambda *a, **k: True\n" + TARGET
    ),
    "equal-to-everything": (
        "class Yes:\n    def __eq__(self, other):\n        return True\n    passed = True\n"
        "def residual(p, q):\n    return Yes()"
    ),
    "reads-solutions": (
        f"import json\ncells = json.load(open({SECRET!r}))['cells']\n"
        "exec([''.join(c['source']) for c in cells if 'def residual' in ''.join(c['source'])][0])"
    ),
    "imports-the-reference": "from specdec_ref.acceptance import residual",
    "imports-by-path": (
        "import importlib.util as u\n"
        f"s = u.spec_from_file_location('a', {str(ROOT / 'specdec_ref/acceptance.py')!r})\n"
        "m = u.module_from_spec(s)\ns.loader.exec_module(m)\nresidual = m.residual"
    ),
    "writes-scores": (
        f"import glob\nfor f in glob.glob({str(ROOT)!r} + '/**/scores.csv', recursive=True):\n"
        "    open(f, 'w').write('me,120')\n" + TARGET
    ),
    "speaks-for-the-process": (
        "import os, json, struct\nm = json.dumps({'value': {'tensor': [1.0, 0.0], 'dtype': 'float64'}}).encode()\n"
        "for fd in range(3, 64):\n    try:\n        os.write(fd, struct.pack('!I', len(m)) + m)\n    except OSError:\n"
        "        pass\n" + TARGET
    ),
    "network": (
        "import socket\ndef residual(p, q):\n    socket.create_connection(('1.1.1.1', 53), timeout=3)\n    return p"
    ),
}


def notebook(folder: Path, *sources: str, name: str = "answer.ipynb") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / name)
    return folder / name


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox([ROOT / "solutions"]) as made:
        yield made


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "LOAD_SECONDS", 4.0)
    monkeypatch.setattr(box, "CALL_SECONDS", 4.0)
    monkeypatch.setattr(box.Stranger.function, "__defaults__", (4.0,))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_submission_gets_nothing_and_the_next_one_its_points(
    name: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    began = time.monotonic()
    theirs = grade_submission("them", [notebook(tmp_path, HOSTILE[name])], sandbox, exercises=[RESIDUAL])
    assert theirs.score == 0, theirs
    assert time.monotonic() - began < 30
    ours = grade_submission("us", [notebook(tmp_path / "us", RIGHT)], sandbox, exercises=[RESIDUAL])
    assert ours.score == 10, ours


def test_there_are_at_least_twenty_hostile_ones() -> None:
    assert len(HOSTILE) >= 20


@pytest.mark.parametrize(
    ("sources", "outcome", "diagnosis"),
    [
        ([RIGHT], "passed", ""),
        (["%matplotlib inline\n!ls\n", RIGHT], "passed", ""),
        (["1 / 0", RIGHT], "passed", ""),  # another cell's failure is not this one's
        ([RIGHT, RIGHT], "passed", ""),  # copied
        ([TARGET], "wrong", "target"),
        (["def residual(p, q):\n    return p -\n"], "crashed", "syntax-error"),
        (["def residual(p, q):\n    raise NotImplementedError('your code here')"], "not attempted", ""),
        (["def residual(p, q):\n    p -= q\n    return p"], "wrong", "changes-arguments"),
        (["x = 1"], "not attempted", ""),
    ],
)
def test_graded_by_the_names_that_are_defined(
    sources: list[str], outcome: str, diagnosis: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    graded = grade_submission("x", [notebook(tmp_path, *sources)], sandbox, exercises=[RESIDUAL])
    assert (graded.verdicts[0].outcome, graded.verdicts[0].diagnosis) == (outcome, diagnosis)


def test_every_solution_passes_all_checks_from_outside(sandbox: Sandbox) -> None:
    notebooks = sorted((ROOT / "solutions").glob("*.ipynb"))
    graded = grade_submission("solutions", notebooks, sandbox)
    assert [v.exercise for v in graded.verdicts if not v.passed] == []


def test_what_chance_decides_is_played_from_outside(tmp_path: Path, sandbox: Sandbox) -> None:
    wrong = (
        "def speculative_step(p, q, drafted, chance):\n    out = []\n    for i, x in enumerate(drafted):\n"
        "        if not chance.accept(min(1.0, float(p[i, x] / q[i, x]))):\n"
        "            return [*out, chance.draw(p[i])]\n"
        "        out.append(x)\n    return [*out, chance.draw(p[len(drafted)])]\n"
    )
    graded = grade_submission("x", [notebook(tmp_path, wrong)], sandbox, exercises=[EXERCISES["step"]])
    assert graded.verdicts[0].diagnosis == "residual-is-target"


def test_a_class_is_graded_in_parallel_written_down_and_gone_on_with(tmp_path: Path) -> None:
    for i in range(6):
        notebook(tmp_path / "class" / f"student{i}", RIGHT if i % 2 else TARGET)
    notebook(tmp_path / "class" / "hostile", HOSTILE["exit"])
    (tmp_path / "class" / "empty").mkdir()
    (tmp_path / "class" / "broken").mkdir()
    (tmp_path / "class" / "broken" / "a.ipynb").write_text("not a notebook")
    out, heard = tmp_path / "out", []
    graded = grade_folder(tmp_path / "class", out, jobs=2, on_graded=lambda done, of: heard.append((done, of)))
    scores = {one.submission: one.score for one in graded}
    assert scores == {"broken": 0, "empty": 0, "hostile": 0} | {f"student{i}": 10 * (i % 2) for i in range(6)}
    assert heard[-1] == (9, 9)
    with (out / "scores.csv").open(encoding="utf-8") as file:
        assert {row["submission"]: int(row["score"]) for row in csv.DictReader(file)} == scores
    report = json.loads((out / "student1" / "results.json").read_text())
    assert report["score"] == 10
    assert {test["status"] for test in report["tests"]} == {"passed", "failed"}
    began = time.monotonic()
    assert grade_folder(tmp_path / "class", out, jobs=2) == graded  # from what was written down
    assert time.monotonic() - began < 3


def test_a_link_to_anothers_work_is_not_followed(tmp_path: Path, sandbox: Sandbox) -> None:
    mine = notebook(tmp_path / "class" / "me", RIGHT)
    (tmp_path / "class" / "thief").mkdir()
    os.symlink(mine, tmp_path / "class" / "thief" / "answer.ipynb")
    graded = grade_folder(tmp_path / "class", jobs=1)
    assert [one.score for one in graded] == [10, 0]


def test_refuses_what_it_cannot_grade(tmp_path: Path) -> None:
    with pytest.raises(SpecdecError, match="is not there"):
        grade_folder(tmp_path / "nothing")
    with pytest.raises(SpecdecError, match="has no notebooks"):
        grade_folder(tmp_path)
    (tmp_path / "a.ipynb").write_text("[" * 100_000)
    with pytest.raises(SpecdecError, match="is no notebook"):
        sources_of(tmp_path / "a.ipynb")


def test_the_command_line_grades_and_says_so(tmp_path: Path) -> None:
    path = notebook(tmp_path, RIGHT)
    result = CliRunner().invoke(app, ["grade", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1  # eleven are missing
    assert "10 of 120 points" in result.output
    as_json = CliRunner().invoke(app, ["grade", str(path), "--json", "--public"])
    assert json.loads(as_json.output)[0]["score"] == 10
    missing = CliRunner().invoke(app, ["grade", str(tmp_path / "no")])
    assert isinstance(missing.exception, SpecdecError)  # which `specdec` tells in a line, with exit status 2


def test_ones_own_work_is_graded_anywhere(tmp_path: Path) -> None:
    for name, source in {"right": RIGHT, "wrong": TARGET, "broken": "def residual(p, q):\n    return p -"}.items():
        notebook(tmp_path / "class" / name, "print('hello')", "1 / 0", source)
    graded = {one.submission: one for one in grade_folder(tmp_path / "class", trusted=True)}
    assert {name: one.score for name, one in graded.items()} == {"right": 10, "wrong": 0, "broken": 0}
    assert graded["broken"].verdicts[1].diagnosis == "syntax-error"
    assert graded["right"].isolation.startswith("none")


def test_progress_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_PROGRESS", str(tmp_path / "p.json"))
    assert "0 of 12 exercises passed" in CliRunner().invoke(app, ["progress"]).output
    assert len(json.loads(CliRunner().invoke(app, ["progress", "--json"]).output)) == 12
