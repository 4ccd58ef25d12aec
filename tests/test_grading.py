"""Grading from outside: by names, in processes of their own. Hostile submissions change no score and stop no run."""

import contextlib
import csv
import inspect
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
import wrong
from hostile import HOSTILE, RIGHT, TARGET, aimed
from submissions import needs_bubblewrap, notebook
from typer.testing import CliRunner

from specdec_lab.cli.main import app
from specdec_lab.teaching.exercises import judging
from specdec_lab.teaching.exercises import sandbox as box
from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import CheckResult, TooSlow
from specdec_lab.teaching.exercises.grading import grade_folder, grade_submission, sources_of, write_reports
from specdec_lab.teaching.exercises.sandbox import Sandbox
from specdec_lab.teaching.exercises.trusted import Trusted
from specdec_ref.errors import SpecdecError

pytestmark = needs_bubblewrap

ROOT = Path(__file__).parents[1]
RESIDUAL = EXERCISES["residual"]
LIMIT = judging.SECONDS
STUB = "def residual(p, q):\n    raise NotImplementedError('your code here')"
REORDERED = [
    'check("residual", residual)',
    "def residual(p, q):\n    return normalized((p - q).clamp(min=0), p)",
    "def normalized(rest, p):\n    n = rest.sum(-1, keepdim=True)\n    return torch.where(n > 0, rest / n, p)",
    "import torch\n\nfrom specdec_lab.teaching.exercises import check",
]
"""The check first, then the answer, what it calls, and last what is imported."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox([ROOT / "solutions"]) as made:
        yield made


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "LOAD_SECONDS", 4.0)
    monkeypatch.setattr(judging, "SECONDS", 1.5)


ASKED = [EXERCISES[name] for name in ("residual", "step", "decode")]
"""Those that hostile submissions answer."""
OF_EACH_KIND = """
exit kill-everybody fork-bomb memory endless-loop huge-answer equal-to-everything imports-by-path writes-scores
speaks-for-the-process network says-what-it-defines reduces proc-root reads-solutions asks-without-end
""".split()
"""One submission of each kind runs in `make test`, all others in `make test-all`."""
HOSTILE_ONES = [pytest.param(name, marks=[] if name in OF_EACH_KIND else pytest.mark.slow, id=name) for name in HOSTILE]


@pytest.mark.parametrize("name", HOSTILE_ONES)
def test_a_hostile_submission_gets_nothing_and_the_next_one_its_points(
    name: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    with aimed(name) as source:
        theirs = grade_submission("them", [notebook(tmp_path, source)], sandbox, exercises=ASKED)
    assert theirs.score == 0, theirs
    ours = grade_submission("us", [notebook(tmp_path / "us", RIGHT)], sandbox, exercises=[RESIDUAL])
    assert ours.score == 10, ours


def graded_without_a_sandbox(name: str, folder: Path) -> int:
    with aimed(name) as source:
        return grade_submission("them", [notebook(folder, source)], Trusted(), exercises=[RESIDUAL]).score


def test_what_the_sandbox_prevents_would_score_or_be_noticed_without_it(tmp_path: Path) -> None:
    assert graded_without_a_sandbox("network", tmp_path) == 10
    with pytest.raises(AssertionError, match="scores were written"):
        graded_without_a_sandbox("writes-scores", tmp_path)


def test_there_are_at_least_83_hostile_ones() -> None:
    assert len(HOSTILE) >= 83
    assert set(OF_EACH_KIND) <= set(HOSTILE)


@pytest.mark.slow
def test_what_a_submission_runs_ends_with_it(tmp_path: Path) -> None:
    """Its process, and every other one in its sandbox, the moment the next submission begins."""
    source = "import time\ndef residual(p, q): return p\ndef sleeps(): time.sleep(3600)"
    with Sandbox([ROOT / "solutions"]) as sandbox:
        running = sandbox.open([source])
        call = running.function("sleeps", 0.5)
        with pytest.raises(TooSlow):
            call()
        inside = psutil.Process(sandbox._running.bwrap.pid).children(recursive=True)
        assert len(inside) == 3  # bubblewrap's first process, the one with PyTorch, its fork
        running.close()
        psutil.wait_procs(inside[2:], timeout=5)
        assert [process.is_running() for process in inside] == [True, True, False]
        sandbox.next_submission()
        psutil.wait_procs(inside, timeout=5)
        assert not any(process.is_running() for process in inside)


def test_how_it_was_isolated_is_not_for_a_submission_to_say(tmp_path: Path, sandbox: Sandbox) -> None:
    forged = HOSTILE["says-what-it-defines"].replace("'ready': 'namespaces'", "'restricted': 'of my own'")
    assert "of my own" in forged
    graded = grade_submission("them", [notebook(tmp_path, forged)], sandbox, exercises=[RESIDUAL])
    assert graded.score == 0
    assert graded.isolation == "bubblewrap"


@pytest.mark.parametrize("name", ["surrogates", "terminal", "name-weird", "forged-line-broken"])
def test_what_a_submission_says_is_one_plain_line_in_every_report(name: str, tmp_path: Path, sandbox: Sandbox) -> None:
    graded = grade_submission("them", [notebook(tmp_path, HOSTILE[name])], sandbox, exercises=[RESIDUAL])
    assert graded.verdicts[0].outcome == "crashed"
    said = graded.verdicts[0].headline
    assert said.isprintable()
    assert len(said) <= 300
    write_reports([graded], tmp_path)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["score"] == 0


def test_a_grader_that_fails_over_one_submission_goes_on_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec_lab.teaching.exercises import grading

    def fails(name: str, *rest: object, **more: object) -> object:
        if name == "b":
            raise RecursionError("too deep")
        return grade_submission(name, *rest, exercises=[RESIDUAL], **more)  # type: ignore[arg-type]

    for name in "abc":
        notebook(tmp_path / "class" / name, RIGHT)
    monkeypatch.setattr(grading, "grade_submission", fails)
    graded = grade_folder(tmp_path / "class", jobs=1)
    assert [one.score for one in graded] == [10, 0, 10]
    assert graded[1].verdicts[0].diagnosis == "grader-failed"


DEFINED = pytest.mark.parametrize(
    ("sources", "outcome", "diagnosis"),
    [
        ([RIGHT], "passed", ""),
        (["%matplotlib inline\n!ls\n", RIGHT], "passed", ""),
        (["%%time\n" + RIGHT + "residual?"], "passed", ""),
        (["%%bash\nls -l", "if True:\n    !ls\n", RIGHT], "passed", ""),
        (["try:\n" + textwrap.indent(RIGHT, "    ") + "except ImportError:\n    pass"], "passed", ""),
        (
            [
                "import torch\ndef residual(p, q):\n"
                "    rest = (p - q).clamp(min=0)\n    n = rest.sum(-1, keepdim=True)\n"
                "    return torch.where(n\n        != 0, rest / n, p)"
            ],
            "passed",
            "",
        ),
        (["1 / 0", RIGHT], "passed", ""),  # another cell's failure is not this one's
        ([RIGHT, RIGHT], "passed", ""),  # copied
        ([RIGHT, STUB], "passed", ""),  # a copied stub was left below the answer
        ([RIGHT + "    raise NotImplementedError('your code here')", STUB], "passed", ""),
        (
            ["def residual(p, q):\n    return left(p, q)", "left = None\n" + STUB, RIGHT.replace("residual", "left")],
            "passed",
            "",
        ),  # the rest of a cell with a stub is needed
        ([TARGET, STUB], "wrong", "target"),
        ([STUB, STUB], "not attempted", ""),
        ([TARGET], "wrong", "target"),
        (["def residual(p, q):\n    return p -\n"], "crashed", "syntax-error"),
        ([STUB, "def residual(p, q):\n    return p -\n"], "crashed", "syntax-error"),
        ([STUB, "def something_else(p, q):\n    return p -\n"], "not attempted", ""),
        ([STUB, "def residual(p, q):\n    return p -\n", RIGHT], "passed", ""),
        (REORDERED, "passed", ""),
        (["def residual(p, q):\n    raise NotImplementedError('your code here')"], "not attempted", ""),
        (["def residual(p, q):\n    p -= q\n    return p"], "wrong", "changes-arguments"),
        (["x = 1"], "not attempted", ""),
    ],
)


@DEFINED
def test_graded_by_the_names_that_are_defined(sources: list[str], outcome: str, diagnosis: str, tmp_path: Path) -> None:
    graded = grade_submission("x", [notebook(tmp_path, *sources)], Trusted(), exercises=[RESIDUAL])
    assert (graded.verdicts[0].outcome, graded.verdicts[0].diagnosis) == (outcome, diagnosis)


@pytest.mark.slow
@DEFINED
def test_graded_by_the_names_that_are_defined_in_a_sandbox(
    sources: list[str], outcome: str, diagnosis: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    graded = grade_submission("x", [notebook(tmp_path, *sources)], sandbox, exercises=[RESIDUAL])
    assert (graded.verdicts[0].outcome, graded.verdicts[0].diagnosis) == (outcome, diagnosis)


def test_the_grader_reports_writing_into_the_arguments(tmp_path: Path, sandbox: Sandbox) -> None:
    graded = grade_submission(
        "x", [notebook(tmp_path, *wrong.WRITES.values())], sandbox, exercises=[EXERCISES[name] for name in wrong.WRITES]
    )
    assert {v.exercise: v.diagnosis for v in graded.verdicts} == dict.fromkeys(wrong.WRITES, "changes-arguments")


def test_every_solution_passes_all_checks_from_outside(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SECONDS", LIMIT)  # what learners are promised
    notebooks = sorted((ROOT / "solutions").glob("*.ipynb"))
    graded = grade_submission("solutions", notebooks, sandbox)
    assert [v.exercise for v in graded.verdicts if not v.passed] == []


@pytest.mark.parametrize("answer", [wrong.k_without_a_limit_on_alpha, wrong.k_from_nothing, wrong.three_sigma])
def test_a_mistake_is_named_from_outside_as_in_the_notebook(
    answer: Callable[..., object], tmp_path: Path, sandbox: Sandbox
) -> None:
    exercise, due = next((EXERCISES[name], due) for name, due, one in wrong.WRONG if one is answer)
    source = inspect.getsource(answer).replace(answer.__name__, exercise.function).replace(": Any", "")
    path = notebook(tmp_path, source.replace("-> Any", ""))
    assert grade_submission("x", [path], sandbox, exercises=[exercise]).verdicts[0].diagnosis == due


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("{'a': 'x'}", "findings has the key 'a'; expected 'A', 'B' and 'C'"),
        ("{'A': 2, 'B': 0, 'C': 1}", "A is 2; expected the text itself"),
        (
            "{'A': 'keeps rejected tokens in the cache', 'B': 'accepts at u = p/q', 'C': 'accepts at u = p/q'}",
            "Exhibit A does not touch a cache",
        ),
    ],
)
def test_wrong_findings_are_reported_by_the_grader(answer: str, said: str, tmp_path: Path, sandbox: Sandbox) -> None:
    path = notebook(tmp_path, f"def findings():\n    return {answer}")
    verdict = grade_submission("x", [path], sandbox, exercises=[EXERCISES["find_bug"]]).verdicts[0]
    assert (verdict.outcome, verdict.expected) == ("wrong", "")
    assert said in verdict.headline


def test_what_chance_decides_is_played_from_outside(tmp_path: Path, sandbox: Sandbox) -> None:
    source = (
        "def speculative_step(p, q, drafted, chance):\n    out = []\n    for i, x in enumerate(drafted):\n"
        "        if not chance.accept(min(1.0, float(p[i, x] / q[i, x]))):\n"
        "            return [*out, chance.draw(p[i])]\n"
        "        out.append(x)\n    return [*out, chance.draw(p[len(drafted)])]\n"
    )
    graded = grade_submission("x", [notebook(tmp_path, source)], sandbox, exercises=[EXERCISES["step"]])
    assert graded.verdicts[0].diagnosis == "residual-is-target"


@pytest.mark.slow
def test_a_class_is_graded_in_parallel_written_down_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec_lab.teaching.exercises import grading

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
    report = json.loads((out / "reports" / "student1" / "results.json").read_text())
    assert report["score"] == 10
    assert {test["status"] for test in report["tests"]} == {"passed", "failed"}
    monkeypatch.setattr(grading, "grade_submission", None)  # nothing is graded again
    assert grade_folder(tmp_path / "class", out, jobs=2) == graded


def test_a_run_that_was_broken_off_grades_again_what_may_come_out_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec_lab.teaching.exercises import grading

    asked: list[str] = []

    def graded_as(name: str, diagnosis: str) -> grading.Graded:
        asked.append(name)
        return grading.Graded(name, (CheckResult("residual", "crashed" if diagnosis else "passed", "", diagnosis),))

    diagnoses = {"done": "", "slow": "endless", "failed": "grader-failed", "cut": "", "crashed": "crashed"}
    diagnoses["killed"] = "process-ended"
    for name in diagnoses:
        notebook(tmp_path / "class" / name, RIGHT)
    monkeypatch.setattr(grading, "grade_submission", lambda name, *_, **__: graded_as(name, diagnoses[name]))

    def run() -> list[str]:
        asked.clear()
        grade_folder(tmp_path / "class", tmp_path / "out", trusted=True)
        return sorted(asked)

    record = tmp_path / "out" / "graded.jsonl"
    assert run() == sorted(diagnoses)
    lines = record.read_text(encoding="utf-8").splitlines()
    last = next(line for line in lines if '"submission": "cut"' in line)
    record.write_text("\n".join([*(line for line in lines if line != last), last[:-20]]), encoding="utf-8")
    assert run() == ["cut", "failed", "killed", "slow"]
    assert run() == ["failed", "killed", "slow"]  # what was written behind the broken line can be read
    monkeypatch.setattr(grading, "__version__", "another")
    assert run() == sorted(diagnoses)


def test_a_link_to_anothers_work_is_not_followed(tmp_path: Path, sandbox: Sandbox) -> None:
    mine = notebook(tmp_path / "class" / "me", RIGHT)
    (tmp_path / "class" / "thief").mkdir()
    os.symlink(mine, tmp_path / "class" / "thief" / "answer.ipynb")
    graded = grade_folder(tmp_path / "class", jobs=1)
    assert [one.score for one in graded] == [10, 0]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in an answer", "in a cell"])
def test_a_process_that_was_killed_is_graded_again_by_the_next_run(where: str, tmp_path: Path) -> None:
    """The cause may be the machine, which had no memory left, or the submission of somebody else."""
    waits = "import time\ntime.sleep(60)\n"
    answer = (
        RIGHT if where == "in a cell" else RIGHT.replace("    rest", textwrap.indent(waits, "    ") + "    rest", 1)
    )
    cell = waits if where == "in a cell" else ""
    name_it = "import ctypes\nctypes.CDLL(None).prctl(15, b'waits')\n"
    notebook(tmp_path / "class" / "honest", name_it, cell, answer)
    out = tmp_path / "out"

    def kill_it() -> None:
        """As soon as it sleeps: nothing else in this test does."""
        for _ in range(300):
            time.sleep(0.1)
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name() == "waits":
                        process.kill()
                        return

    killer = threading.Thread(target=kill_it)
    killer.start()
    [first] = grade_folder(tmp_path / "class", out, jobs=1)
    killer.join()
    assert first.score == 0
    found = next(v for v in first.verdicts if v.exercise == "residual")
    assert found.diagnosis == "process-ended", found
    grade_folder(tmp_path / "class", out, jobs=1)
    assert len((out / "graded.jsonl").read_text(encoding="utf-8").splitlines()) == 2  # graded again


def test_refuses_what_it_cannot_grade(tmp_path: Path) -> None:
    with pytest.raises(SpecdecError, match="does not exist"):
        grade_folder(tmp_path / "nothing")
    with pytest.raises(SpecdecError, match="contains no notebooks"):
        grade_folder(tmp_path)
    (tmp_path / "a.ipynb").write_text("[" * 100_000)
    with pytest.raises(SpecdecError, match="is not a notebook"):
        sources_of(tmp_path / "a.ipynb")


def test_the_command_line_grades_and_says_so(tmp_path: Path) -> None:
    path = notebook(tmp_path, RIGHT)
    result = CliRunner().invoke(app, ["grade", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1  # the others are missing
    assert f"10 of {10 * len(EXERCISES)} points" in result.output
    as_json = CliRunner().invoke(app, ["grade", str(path), "--json", "--public"])
    assert json.loads(as_json.output)[0]["score"] == 10
    missing = CliRunner().invoke(app, ["grade", str(tmp_path / "no")])
    assert isinstance(missing.exception, SpecdecError)  # which `specdec` tells in a line, with exit status 2


def test_an_answer_that_needs_the_package_fails_with_the_reason(tmp_path: Path, sandbox: Sandbox) -> None:
    source = "import specdec_ref as sd\ndef residual(p, q):\n    return sd.residual(p, q)"
    graded = grade_submission("x", [notebook(tmp_path, source)], sandbox, exercises=[RESIDUAL])
    assert "specdec_ref is not available to the grader" in graded.verdicts[0].headline


def test_an_endless_loop_of_ones_own_ends_in_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdec_lab.teaching.exercises import trusted

    monkeypatch.setattr(judging, "SECONDS", 0.2)
    monkeypatch.setattr(trusted, "SECONDS", 0.5)
    swallows = "def residual(p, q):\n    while 1:\n        try:\n            p + q\n        except Exception:\n"
    swallows += "            pass"
    never = "\nwhile True:\n    pass"
    checked = f"from specdec_lab.teaching.exercises import check\n{RIGHT}\ncheck('residual', residual){never}"
    with ThreadPoolExecutor(1) as pool:
        for source in (swallows, swallows + never, checked):  # a check has a limit of its own
            path = notebook(tmp_path, source)
            for grade in (grade_submission, lambda *a, **k: pool.submit(grade_submission, *a, **k).result()):
                graded = grade("me", [path], Trusted(), exercises=[RESIDUAL])
                assert graded.verdicts[0].diagnosis == "endless"


def test_ones_own_work_is_graded_anywhere(tmp_path: Path) -> None:
    for name, source in {"right": RIGHT, "wrong": TARGET, "broken": "def residual(p, q):\n    return p -"}.items():
        notebook(tmp_path / "class" / name, "print('hello')", "1 / 0", source)
    graded = {one.submission: one for one in grade_folder(tmp_path / "class", trusted=True)}
    assert {name: one.score for name, one in graded.items()} == {"right": 10, "wrong": 0, "broken": 0}
    assert graded["broken"].verdicts[1].diagnosis == "syntax-error"
    assert graded["right"].isolation.startswith("none")


def test_progress_is_found_from_the_folder_above_the_exercises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdec_lab.teaching.exercises import check

    monkeypatch.delenv("SPECDEC_PROGRESS", raising=False)
    for folder in ("exercises", "notebooks"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "exercises")
    check("residual", lambda p, q: p)
    for folder in (".", "exercises", "notebooks"):
        monkeypatch.chdir(tmp_path / folder)
        assert "1 try" in CliRunner().invoke(app, ["progress"]).output


def test_progress_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_PROGRESS", str(tmp_path / "p.json"))
    assert f"0 of {len(EXERCISES)} exercises passed" in CliRunner().invoke(app, ["progress"]).output
    assert len(json.loads(CliRunner().invoke(app, ["progress", "--json"]).output)) == len(EXERCISES)


def test_an_answer_that_comes_while_the_grader_looks_at_the_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the grader itself had to wait for the core: the process sleeps by then, since it has said all."""
    source = "import time\ndef residual(p, q):\n    time.sleep(1.2)\n    return p"
    with Sandbox([ROOT / "solutions"]) as sandbox, sandbox.open([source]) as running:
        call, looked, p = running.function("residual", 1.0), [], torch.tensor([0.2, 0.8])
        at_once = sandbox.computing

        def late() -> tuple[float, bool]:
            time.sleep(1.0)
            looked.append(1)
            return at_once()

        monkeypatch.setattr(sandbox, "computing", late)
        assert call(p, p).tolist() == pytest.approx([0.2, 0.8])
        assert len(looked) == 1


def burner(seconds: float) -> str:
    """An answer that computes for so much CPU time before it says anything."""
    waits = f"    began = time.process_time()\n    while time.process_time() - began < {seconds}: pass"
    return f"import time\ndef residual(p, q):\n{waits}\n    return p"


@pytest.mark.parametrize(
    ("source", "ends"),
    [(burner(0.4), True), (burner(60), False), ("import time\ndef residual(p, q): time.sleep(60)", False)],
)
def test_what_other_programs_take_of_the_machine_is_not_held_against_an_answer(source: str, ends: bool) -> None:
    """One second is allowed, and four other programs share the one core: an honest answer is waited for."""
    core = min(os.sched_getaffinity(0))
    with Sandbox([ROOT / "solutions"]) as sandbox, contextlib.ExitStack() as others:
        for process in psutil.Process(sandbox._running.bwrap.pid).children(recursive=True):
            process.cpu_affinity([core])
        with sandbox.open([source]) as running:
            for _ in range(4):
                other = subprocess.Popen(
                    [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
                )
                others.callback(other.kill)
            call = running.function("residual", 1.0)
            p = torch.tensor([0.2, 0.8])
            if ends:
                call(p, p)
            else:
                with pytest.raises(TooSlow):
                    call(p, p)
