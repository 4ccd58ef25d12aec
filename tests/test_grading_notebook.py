"""What works in a notebook is graded, or `check` says that it will not be, and why."""

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hostile import RIGHT
from submissions import notebook

from specdec_lab.teaching.exercises import check
from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.grading import grade_submission
from specdec_lab.teaching.exercises.judgement import BUGS
from specdec_lab.teaching.exercises.sandbox import Sandbox
from specdec_lab.teaching.exercises.trusted import Trusted

RESIDUAL = EXERCISES["residual"]
SANDBOXED = pytest.mark.skipif(sys.platform != "linux", reason="grading others' work needs Linux")


@pytest.fixture(scope="module", params=["trusted", pytest.param("sandbox", marks=[SANDBOXED, pytest.mark.slow])])
def box(request: pytest.FixtureRequest) -> Iterator[Trusted | Sandbox]:
    with Trusted() if request.param == "trusted" else Sandbox() as made:
        yield made


@pytest.mark.parametrize(
    "cells",
    [
        [
            "import asyncio\nasync def one():\n    await asyncio.sleep(0)\n    return 1",
            "x = await one()",
            "assert x\n" + RIGHT,
        ],
        ["import asyncio\nasync def nothing():\n    pass\nawait nothing()\n" + RIGHT],
        ["async with __import__('contextlib').nullcontext(1) as x:\n    pass\nassert x\n" + RIGHT],
        ["await missing", RIGHT],
        [
            "import os\nos.environ['MODE'] = 'right'",
            RIGHT.replace("    rest", "    import os; os.environ['MODE']\n    rest"),
        ],
        ["%env MODE=right", RIGHT.replace("    rest", "    import os; os.environ['MODE']\n    rest", 1)],
        ["%set_env MODE right  \nimport os\nassert os.environ['MODE'] == 'right'\n" + RIGHT],
        ["if True:\n    %env MODE = a b\nimport os\nassert os.environ['MODE'] == 'a b'\n" + RIGHT],
        ["%env\n%env MODE\n" + RIGHT],
        [RIGHT.replace("    rest", "    import os; os.environ['MODE'] = '1'\n    rest", 1)],
    ],
)
def test_what_a_notebook_allows_is_graded(cells: list[str], tmp_path: Path, box: Trusted | Sandbox) -> None:
    graded = grade_submission("me", [notebook(tmp_path, *cells)], box, exercises=[RESIDUAL])
    assert graded.score == 10, graded


def in_notebook(source: str) -> dict[str, Any]:
    """The names of a notebook that ran this cell."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(source, names)
    return names


def note(exercise: str, function: Any) -> str:
    """The note of `check` on an answer that passed."""
    shown = check(exercise, function)
    assert shown
    return str(shown.verdict.note)


@pytest.fixture(autouse=True)
def progress_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)


@pytest.fixture
def helper_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A helper.py next to the notebook, as an editor or %%writefile creates it."""
    (tmp_path / "helper.py").write_text(RIGHT + "\nSMALLEST = [0]\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("helper", None)


@pytest.mark.usefixtures("helper_file")
@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("from helper import residual", "residual"),
        ("from helper import residual as other\ndef residual(p, q):\n    return other(p, q)", "other"),
        ("import helper\ndef residual(p, q):\n    return helper.residual(p, q)", "helper"),
        ("def residual(p, q):\n    import helper\n    return helper.residual(p, q)", "helper"),
        (
            "import helper\ndef first(p, q):\n    return helper.residual(p, q)\n"
            "import functools\n@functools.lru_cache\ndef residual(p, q):\n    return first(p, q)",
            "helper",
        ),
        ("import helper, functools\nresidual = functools.partial(lambda f, p, q: helper.residual(p, q), 0)", "helper"),
        (RIGHT + "from helper import SMALLEST\n" + RIGHT.replace("min=0", "min=SMALLEST[0]"), "SMALLEST"),
    ],
)
def test_a_module_beside_the_notebook_is_not_handed_in(source: str, what: str) -> None:
    said = note("residual", in_notebook(source)["residual"])
    assert said == (
        f"this will not be graded, because {what} comes from helper.py, but you submit only the notebook:"
        " copy the code that you use into a cell"
    )


IMPORTED = "from specdec_lab.teaching.exercises.judgement import BUGS\n"
OWN = f"{IMPORTED}BUGS = {BUGS!r}\n"
"""The list as the exercise's notebook has it. Where that cell was deleted, the import above it keeps it working."""
FINDINGS = "def findings():\n    return {'A': BUGS[2], 'B': BUGS[0], 'C': BUGS[1]}"


@pytest.mark.slow
def test_a_list_of_the_package_is_reported() -> None:
    said = note("find_bug", in_notebook(IMPORTED + FINDINGS)["findings"])
    assert said.startswith("this will not be graded, because BUGS comes from specdec_lab")
    assert note("find_bug", in_notebook(OWN + FINDINGS)["findings"]) == ""


@SANDBOXED
@pytest.mark.parametrize(("before", "score"), [(IMPORTED, 0), (OWN, 10)])
def test_a_list_of_the_package_is_not_there_when_graded(before: str, score: int, tmp_path: Path) -> None:
    path = notebook(tmp_path, before + FINDINGS)
    with Sandbox() as made:
        assert grade_submission("me", [path], made, exercises=[EXERCISES["find_bug"]]).score == score


USES_A_HELPER = "def residual(p, q):\n    return normalized((p - q).clamp(min=0), p)"
HELPER = """import torch
def normalized(rest, p):
    n = rest.sum(-1, keepdim=True)
    return torch.where(n > 0, rest / n, p)"""


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (
            [USES_A_HELPER],
            "no cell of the saved answer.ipynb defines normalized: restore that cell, or save the notebook",
        ),
        ([HELPER, USES_A_HELPER], ""),
        ([USES_A_HELPER, "%matplotlib inline\nif True:\n    normalized = None"], ""),
        (["from somewhere import *", USES_A_HELPER], ""),
        ([RIGHT.replace("residual", "other")], ""),  # the answer itself is not saved yet
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_name_that_only_a_deleted_cell_defined_is_reported(
    saved: list[str], said: str, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = notebook(tmp_path, *saved)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JPY_SESSION_NAME", f"course/{path.name}" if relative else str(path))
    function = in_notebook(f"{HELPER}\n{USES_A_HELPER}")["residual"]
    assert note("residual", function) == (f"this will not be graded, because {said}" if said else "")


def test_a_notebook_that_is_too_large_to_be_graded_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = notebook(tmp_path, RIGHT)
    path.write_bytes(path.read_bytes().ljust(5_000_001))
    monkeypatch.setattr(sys.modules["__main__"], "__vsc_ipynb_file__", str(path), raising=False)
    assert "is larger than 5 MB; clear its outputs" in note("residual", in_notebook(RIGHT)["residual"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        RIGHT,
        "import numpy, torch, functools, math, json\n" + RIGHT + "residual = functools.wraps(residual)(residual)",
        "import torch\nclass Answer:\n"
        + "".join(f"    {line}\n" for line in RIGHT.replace("l(p", "l(self, p").split("\n")[1:])
        + "residual = Answer().residual",
        "import torch\nEMPTY = []\nNAMES = {}\n" + RIGHT.replace("    rest", "    EMPTY, NAMES\n    rest", 1),
    ],
)
def test_nothing_is_said_about_an_answer_that_will_be_graded(source: str) -> None:
    assert note("residual", in_notebook(source)["residual"]) == ""


def test_an_object_that_answers_anything_gets_no_warning_and_no_failure() -> None:
    class Anything(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    names = in_notebook(RIGHT.replace("    rest", "    odd\n    rest", 1))
    names["odd"] = Anything("odd")
    assert note("residual", names["residual"]) == ""


@pytest.mark.slow
def test_a_real_kernel_tells_which_notebook_it_runs(tmp_path: Path) -> None:
    """Its helper's cell was run, and deleted afterwards."""
    path = notebook(tmp_path, USES_A_HELPER, name="mine.ipynb")
    cells = [HELPER, USES_A_HELPER, "from specdec_lab.teaching.exercises import check\ncheck('residual', residual)"]
    running = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(running, tmp_path / "running.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--stdout", "running.ipynb"],
        cwd=tmp_path,
        env=os.environ | {"JPY_SESSION_NAME": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no cell of the saved mine.ipynb defines normalized" in done.stdout
