"""What an honest answer needs of the process that it runs in, and what that process cannot do."""

import json
import os
import platform
import shutil
import site
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hostile import RIGHT
from submissions import needs_bubblewrap, notebook
from typer.testing import CliRunner

from specdec_lab.cli.main import app
from specdec_lab.teaching.exercises import judging
from specdec_lab.teaching.exercises import sandbox as box
from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import SubmissionFailed
from specdec_lab.teaching.exercises.grading import grade_folder, grade_submission
from specdec_lab.teaching.exercises.hidden import PUBLIC_SEED
from specdec_lab.teaching.exercises.sandbox import Sandbox, decode
from specdec_ref.errors import SpecdecError

pytestmark = needs_bubblewrap

ROOT = Path(__file__).parents[1]
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


def test_what_the_course_uses_can_be_imported(sandbox: Sandbox) -> None:
    source = "def imports(name):\n    return __import__(name).__name__"
    with sandbox.open([source]) as running:
        imports = running.function("imports", 60.0)
        for name in ("numpy", "scipy.stats", "transformers", "tokenizers", "safetensors", "tqdm", "sqlite3", "decimal"):
            assert imports(name) == name.split(".")[0]


def test_libraries_start_no_threads_however_many_cores_there_are(sandbox: Sandbox) -> None:
    source = "import os\ndef seen():\n    return {key: os.environ[key] for key in os.environ}"
    with sandbox.open([source]) as running:
        environment = running.function("seen", 10.0)()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert environment.pop(name) == "1"
    assert environment.keys() == {"TORCHDYNAMO_DISABLE", "HOME", "PATH", "LANG"}


def test_a_compiled_function_and_a_series_are_graded_as_in_the_notebook(sandbox: Sandbox) -> None:
    source = """\
import os
import pandas
import torch

@torch.compile
def doubled(values):
    return 2 * values

def series(values):
    return pandas.Series(values) + 1

def setting():
    os.environ["SEEN"] = os.environ["HOME"]
    return os.environ["SEEN"]
"""
    with sandbox.open([source]) as running:
        assert running.broken == []
        assert running.function("doubled", 60.0)(torch.ones(2)).tolist() == [2, 2]
        assert list(running.function("series", 60.0)([1.0, 2.0])) == [2.0, 3.0]
        assert running.function("setting", 10.0)().startswith("/")


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

def shares_memory():
    if c.shmget(0, 4096, 0o1600) < 0:
        raise OSError(ctypes.get_errno(), "shmget")

def shares_semaphores():
    if c.semget(0, 8, 0o1600) < 0:
        raise OSError(ctypes.get_errno(), "semget")

def opens_a_namespace():
    if c.unshare(0x10000000) < 0:
        raise OSError(ctypes.get_errno(), "unshare")

def changes_anothers_priority():
    os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)

def changes_anothers_limits():
    import resource
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))

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
    refused = ["forks", "clones", "spawns", "runs", "shares_memory", "shares_semaphores", "opens_a_namespace"]
    refused += ["changes_anothers_priority", "changes_anothers_limits"]
    with sandbox.open([source]) as running:
        assert running.broken == []
        may = running.function("may", 10.0)
        assert may("starts_threads") is True
        assert [name for name in refused if may(name)] == []


def test_an_answer_with_threads_of_its_own_passes(tmp_path: Path, sandbox: Sandbox) -> None:
    source = RIGHT.replace("def residual(", "def one(") + (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def residual(p, q):\n    with ThreadPoolExecutor(2) as pool:\n        return pool.submit(one, p, q).result()"
    )
    assert grade_submission("x", [notebook(tmp_path, source)], sandbox, exercises=[RESIDUAL]).score == 10


MORE_DRAWINGS = [
    "plt.rcParams['figure.dpi'] = 150",
    "with plt.style.context('ggplot'):\n    plt.plot([1, 2])",
    "figure, (left, right) = plt.subplots(1, 2)",
    "for bar in plt.bar([1, 2], [3, 4]):\n    bar.set_alpha(0.5)",
    "size = plt.rcParams['figure.figsize'][0]",
]


@pytest.mark.parametrize(
    "draws",
    [
        "figure, axes = plt.subplots()\naxes.plot([1])\naxes.spines['top'].set_visible(False)",
        *(pytest.param(draws, marks=pytest.mark.slow) for draws in MORE_DRAWINGS),
    ],
)
def test_what_only_draws_does_not_break_the_cell_of_an_answer(draws: str, tmp_path: Path, sandbox: Sandbox) -> None:
    cell = f"import matplotlib.pyplot as plt\n{draws}\n{RIGHT}"
    graded = grade_submission("x", [notebook(tmp_path, cell)], sandbox, exercises=[RESIDUAL])
    assert graded.score == 10, graded


@pytest.mark.parametrize(
    "draws",
    [
        "style['a']",
        *(pytest.param(draws, marks=pytest.mark.slow) for draws in ("style['a'] = 1", "with style:\n        pass")),
    ],
)
def test_an_answer_that_needs_a_plotting_library_gets_the_reason(draws: str, tmp_path: Path, sandbox: Sandbox) -> None:
    cell = f"import matplotlib.pyplot as plt\nstyle = plt.rcParams\ndef residual(p, q):\n    {draws}\n    return p"
    graded = grade_submission("x", [notebook(tmp_path, cell)], sandbox, exercises=[RESIDUAL])
    assert "matplotlib is not available to the grader" in graded.verdicts[0].headline


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


@pytest.mark.timed
def test_an_answer_has_as_much_time_for_each_seed_as_in_the_notebook(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "SECONDS", 1.0)
    pause = 0.5 / len(RESIDUAL.cases(PUBLIC_SEED))  # half of a seed's time; three seeds take more than one has
    slow = f"import time\n{RIGHT.replace('    rest', f'    time.sleep({pause})' + chr(10) + '    rest', 1)}"
    assert grade_submission("x", [notebook(tmp_path, slow)], sandbox, exercises=[RESIDUAL]).score == 10


WRITES = """\
import os
def writes():
    written = 0
    for folder in {os.getcwd(), '/tmp', '/dev/shm', '/dev', '/', '/checks'}:
        for i in range(100):
            try:
                with open(f'{folder}/{i}', 'wb') as f:
                    f.write(bytes(1_000_000))
                written += 1
            except OSError:
                break
    return written
def finds():
    return os.listdir()
"""


def test_files_of_a_submission_are_limited_in_all_and_end_with_their_process(sandbox: Sandbox) -> None:
    with sandbox.open([WRITES]) as running:
        assert 5 <= running.function("writes", 30.0)() <= 16
    with sandbox.open([WRITES]) as running:  # another exercise of the same submission
        assert running.function("finds", 30.0)() == []


def test_cpu_time_is_limited_over_all_threads_of_a_process(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "CPU_SECONDS", 2)
    source = "import threading\ndef spins():\n    while True: pass\ndef start():\n"
    source += "    for _ in range(3): threading.Thread(target=spins, daemon=True).start()\n    spins()"
    with sandbox.open([source]) as running, pytest.raises(SubmissionFailed, match="the process ended"):
        running.function("start", 60.0)()


def test_memory_is_limited(sandbox: Sandbox) -> None:
    source = "def takes(megabytes):\n    return len(bytes(megabytes * 1_000_000))"
    with sandbox.open([source]) as running:
        takes = running.function("takes", 30.0)
        assert takes(700) == 700_000_000
        with pytest.raises(SubmissionFailed, match="MemoryError"):
            takes(1_200)


@pytest.mark.timed
@pytest.mark.parametrize(
    "value",
    [
        {"dict": [[i * (2**61 - 1), 0] for i in range(35_000)]},
        [[[] for _ in range(1_000)] for _ in range(300)],
        {"dict": [[[i, j], 0] for i in range(100) for j in range(100)]},
    ],
    ids=["keys-that-collide", "very-many-values", "very-many-keys"],
)
def test_an_answer_that_takes_long_to_decode_is_refused_at_once(value: object) -> None:
    began = time.process_time()
    with pytest.raises(SubmissionFailed, match="too large"):
        decode(value)
    assert time.process_time() - began < 1.0


def test_an_answer_nested_without_end_is_refused() -> None:
    value: list[object] = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(SubmissionFailed, match="too large"):
        decode(value)


def without_bwrap(folder: Path, script: str = "") -> str:
    """A PATH on which there is no bwrap, or this script in its place."""
    if script:
        (folder / "bwrap").write_text(f"#!/bin/bash\n{script}\n")
        (folder / "bwrap").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "",
            "needs bubblewrap, which is not installed: install it (apt install bubblewrap, or dnf install bubblewrap)",
        ),
        ("echo 'bwrap: No permissions' >&2; exit 1", "bwrap does not start here (bwrap: No permissions)"),
        ("exit 1", "bwrap does not start here (exit status 1)"),
        ("exit 0", "bwrap does not start here (exit status 0)"),
    ],
)
def test_without_bubblewrap_nothing_is_graded(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook(tmp_path / "class" / "a", RIGHT)
    monkeypatch.setenv("PATH", without_bwrap(tmp_path, script))
    with pytest.raises(SpecdecError) as error:
        grade_folder(tmp_path / "class", tmp_path / "out")
    assert said in str(error.value)
    assert "use --trusted for your own work" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "scores.csv").exists()
    result = CliRunner().invoke(app, ["grade", str(tmp_path / "class"), "--trusted"])
    assert result.exit_code == 1, (
        result.exception
    )  # one's own work needs no bubblewrap; the other exercises are missing


@pytest.mark.parametrize("option", ["--unshare-net", "--unshare-pid"])
def test_where_bubblewrap_isolates_only_partly_nothing_is_graded(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("bwrap")
    every = "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts".replace(option, "")
    script = f"""\
options=()
for option in "$@"; do
    case "$option" in
        {option}) ;;
        --unshare-all) options+=({every}) ;;
        *) options+=("$option") ;;
    esac
done
exec {real} "${{options[@]}}\""""
    monkeypatch.setenv("PATH", without_bwrap(tmp_path, script) + os.pathsep + os.environ["PATH"])
    with pytest.raises(SpecdecError, match="bwrap starts but does not isolate"):
        Sandbox()


def test_where_system_calls_cannot_be_refused_nothing_is_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(box.CHILD.with_name("cells.py"), tmp_path)
    program = box.CHILD.read_text(encoding="utf-8")
    assert "    blocked.load()\n" in program
    (tmp_path / box.CHILD.name).write_text(program.replace("    blocked.load()\n", ""), encoding="utf-8")
    monkeypatch.setattr(box, "CHILD", tmp_path / box.CHILD.name)
    with pytest.raises(SpecdecError, match="bwrap starts but does not isolate"):
        Sandbox()


def test_a_hidden_folder_is_empty_even_where_it_is_inside_a_library() -> None:
    import scipy

    folder = Path(scipy.__file__).parent
    source = "import os\ndef seen(folder):\n    return os.listdir(folder)"
    source += "\ndef written(folder):\n    open(folder + '/x', 'w')"
    with Sandbox([folder / "stats", folder / "signal"]) as sandbox, sandbox.open([source]) as running:
        seen = running.function("seen", 10.0)
        assert "linalg" in seen(str(folder))
        assert [seen(str(folder / name)) for name in ("stats", "signal")] == [[], []]
        with pytest.raises(SubmissionFailed, match=r"PermissionError|Read-only"):
            running.function("written", 10.0)(str(folder / "stats"))


FINDS = """\
import importlib, os, sys
def finds(folders):
    sys.meta_path = [finder for finder in sys.meta_path if type(finder).__name__ != 'MissingModuleFinder']
    for name in [name for name in sys.modules if name.startswith('specdec_')]:
        del sys.modules[name]
    sys.path[:0] = folders
    found = []
    for module in ('specdec_ref.acceptance', 'specdec_lab.teaching.exercises.catalogue'):
        try:
            found.append(importlib.import_module(module).__file__)
        except ImportError:
            pass
        for folder in folders:
            try:
                found.append(open(os.path.join(folder, module.replace('.', '/') + '.py')).name)
            except OSError:
                pass
    for folder, _, files in os.walk('/'):
        answers = 'acceptance.py', 'catalogue.py', '02_residual.ipynb'
        found += [os.path.join(folder, name) for name in files if name in answers]
    return found
"""
ASKS = """\
import json, sys
import specdec_ref
from specdec_lab.teaching.exercises.sandbox import Sandbox
with Sandbox() as sandbox, sandbox.open([sys.argv[1]]) as running:
    print(json.dumps([specdec_ref.__file__, running.function("finds", 100.0)(sys.argv[2:])]))
"""


LAYOUTS = ["a linked environment", "a linked package", "a linked site-packages"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*(pytest.param(layout, marks=pytest.mark.slow) for layout in LAYOUTS), "editable"])
def test_the_package_is_not_there_however_it_is_installed(layout: str, tmp_path: Path) -> None:
    """An environment reached through a symbolic link showed a package that was not installed as editable."""
    real, link = tmp_path / "real", tmp_path / "link"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", real], check=True)
    link.symlink_to(real)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(real)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "specdec" not in entry.name and entry.suffix != ".pth" and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    copy = tmp_path / "copy"
    for name in ("specdec_ref", "specdec_lab"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.safetensors"))
        if layout == "a linked package":
            (packages / name).symlink_to(copy / name)
        elif layout != "editable":
            shutil.move(copy / name, packages / name)
    if layout == "editable":
        (packages / "course.pth").write_text(str(copy))
    if layout == "a linked site-packages":
        shutil.move(packages, tmp_path / "elsewhere")
        packages.symlink_to(tmp_path / "elsewhere")
    folders = [packages, link / packages.relative_to(real), packages.resolve(), copy]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    said = subprocess.run(
        [link / "bin" / "python", "-c", ASKS, FINDS, *folders],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    imported, found = json.loads(said)
    assert str(tmp_path) in imported
    assert found == []


def command_of_an_ordinary_user(command: list[str]) -> list[str]:
    """This command as a user without rights. What lies in a folder that only root may enter is shown to that user."""
    needed = {ROOT, *(Path(p).resolve() for p in (sys.prefix, sys.base_prefix, *site.getsitepackages()))}
    above = {parent for path in needed for parent in path.parents}
    closed = {parent for parent in above if not parent.stat().st_mode & stat.S_IXOTH}
    outer = ["bwrap", "--dev-bind", "/", "/"]
    for parent in sorted(closed):
        outer += ["--perms", "0755", "--tmpfs", str(parent)]
    for parent in sorted(p for p in above - closed if any(p.is_relative_to(folder) for folder in closed)):
        outer += ["--perms", "0755", "--dir", str(parent)]
    for path in sorted(p for p in needed if any(p.is_relative_to(folder) for folder in closed)):
        outer += ["--ro-bind", str(path), str(path)]
    return [*outer, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *command]


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="all other tests run as an ordinary user already")
def test_an_ordinary_user_can_grade_and_hostile_submissions_change_nothing() -> None:
    """The tests of hostile submissions once more, those among them that depend on the user."""
    names = "kill-everybody kill-parent fork-bomb fork-memory orphan limits-the-others slows-the-others many-files"
    names += " ptrace proc network writes-scores memory-outside-of-it threads-without-end many-threads"
    names += " searches-everywhere a-file-system-of-its-own semaphores-and-messages"
    test = "tests/test_grading.py::test_a_hostile_submission_gets_nothing_and_the_next_one_its_points"
    asked = ["tests/test_grading_processes.py::test_a_submission_has_one_process_and_its_threads"]
    asked += [f"{test}[{name}]" for name in names.split()]
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o777)
        places = {"HOME": home, "TMPDIR": home, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run(
            command_of_an_ordinary_user(
                [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", *asked]
            ),
            env=os.environ | places,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert f"{len(asked)} passed" in run.stdout
