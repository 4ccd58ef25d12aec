"""What an honest answer needs of the process that it runs in, and what that process cannot do."""

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import RIGHT
from submissions import notebook

from specdec_ref.teaching.checks import judging
from specdec_ref.teaching.checks.catalogue import EXERCISES
from specdec_ref.teaching.checks.grading import grade_submission
from specdec_ref.teaching.checks.sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="grading strangers' code needs Linux")

RESIDUAL = EXERCISES["residual"]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


def test_scipy_can_be_imported_and_used(tmp_path: Path, sandbox: Sandbox) -> None:
    source = (
        "from scipy import stats\n\ndef is_consistent(counts, probabilities):\n    n = sum(counts)\n"
        "    expected = [max(n * p, 1e-9) for p in probabilities]\n"
        "    return bool(stats.chisquare(counts, expected).pvalue >= 0.001)"
    )
    asked = [EXERCISES["equivalence_test"]]
    assert grade_submission("x", [notebook(tmp_path, source)], sandbox, exercises=asked).score == 10


def test_libraries_are_told_to_start_no_threads_however_many_cores_there_are(sandbox: Sandbox) -> None:
    source = "import os\ndef seen():\n    return {key: os.environ[key] for key in os.environ}"
    with sandbox.open([source]) as stranger:
        assert stranger.function("seen", 10.0)() == {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }


STARTS = """\
import ctypes, os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

c = ctypes.CDLL(None, use_errno=True)

def forks():
    pid = os.fork()
    if pid == 0:
        os._exit(0)

def clones():
    pid = c.syscall(@CLONE@, 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")

def spawns():
    os.posix_spawn(sys.executable, [sys.executable, "-V"], {})

def runs():
    subprocess.run([sys.executable, "-V"])

def shares():
    if c.shmget(0, 4096, 0o1600) < 0:
        raise OSError(ctypes.get_errno(), "shmget")

def starts_threads():
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(int, "1234")) == 10

def may(name):
    try:
        globals()[name]()
        return True
    except OSError:
        return False
"""


def test_a_submission_has_one_process_and_its_threads(sandbox: Sandbox) -> None:
    """So that its limit on memory is one."""
    source = STARTS.replace("@CLONE@", {"x86_64": "56", "aarch64": "220"}.get(platform.machine(), "0"))
    with sandbox.open([source]) as stranger:
        if "seccomp" not in stranger.reached:
            pytest.skip(f"this system has {stranger.reached} only")
        assert stranger.broken == []
        may = stranger.function("may", 10.0)
        assert may("starts_threads") is True
        assert [may(name) for name in ("forks", "clones", "spawns", "runs", "shares")] == [False] * 5


def test_an_answer_with_threads_of_its_own_passes(tmp_path: Path, sandbox: Sandbox) -> None:
    source = RIGHT.replace("def residual(", "def one(") + (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def residual(p, q):\n    with ThreadPoolExecutor(2) as pool:\n        return pool.submit(one, p, q).result()"
    )
    assert grade_submission("x", [notebook(tmp_path, source)], sandbox, exercises=[RESIDUAL]).score == 10


@pytest.mark.parametrize(
    "draws",
    [
        "plt.rcParams['figure.dpi'] = 150",
        "with plt.style.context('ggplot'):\n    plt.plot([1, 2])",
        "figure, axes = plt.subplots()\naxes.plot([1])\naxes.spines['top'].set_visible(False)",
        "figure, (left, right) = plt.subplots(1, 2)",
        "for bar in plt.bar([1, 2], [3, 4]):\n    bar.set_alpha(0.5)",
        "size = plt.rcParams['figure.figsize'][0]",
    ],
)
def test_what_only_draws_does_not_break_the_cell_of_an_answer(draws: str, tmp_path: Path, sandbox: Sandbox) -> None:
    cell = f"import matplotlib.pyplot as plt\n{draws}\n{RIGHT}"
    graded = grade_submission("x", [notebook(tmp_path, cell)], sandbox, exercises=[RESIDUAL])
    assert graded.score == 10, graded


@pytest.mark.parametrize("draws", ["style['a'] = 1", "style['a']", "with style:\n        pass"])
def test_an_answer_that_needs_what_only_draws_is_told_so(draws: str, tmp_path: Path, sandbox: Sandbox) -> None:
    cell = f"import matplotlib.pyplot as plt\nstyle = plt.rcParams\ndef residual(p, q):\n    {draws}\n    return p"
    graded = grade_submission("x", [notebook(tmp_path, cell)], sandbox, exercises=[RESIDUAL])
    assert "matplotlib is not there while you are graded" in graded.verdicts[0].headline


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("return (p > q).long().softmax(-1)", "crashed"),
        ("raise NotImplementedError('your code here')", "not attempted"),
        ("raise NotImplementedError", "not attempted"),
    ],
)
def test_what_pytorch_has_not_implemented_is_a_crash(body: str, outcome: str, tmp_path: Path, sandbox: Sandbox) -> None:
    path = notebook(tmp_path, f"def residual(p, q):\n    {body}")
    verdict = grade_submission("x", [path], sandbox, exercises=[RESIDUAL]).verdicts[0]
    assert verdict.outcome == outcome
    assert ("not implemented for 'Long'" in verdict.headline) == (outcome == "crashed")


def test_an_answer_has_as_much_time_for_each_seed_as_in_the_notebook(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "SECONDS", 1.0)
    slow = f"import time\n{RIGHT.replace('    rest', '    time.sleep(0.18)' + chr(10) + '    rest', 1)}"
    assert grade_submission("x", [notebook(tmp_path, slow)], sandbox, exercises=[RESIDUAL]).score == 10
