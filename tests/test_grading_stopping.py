"""Ctrl-C while a class is graded: it responds at once, ends soon, and keeps the finished reports."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hostile import RIGHT
from submissions import notebook

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="grading others' work needs Linux"),
    pytest.mark.slow,
]
SLEEPS = "import time\ntime.sleep(600)"
SOON = 20.0
"""Seconds, on a machine with much else to do; a notebook whose cells sleep is waited for longer."""


@contextmanager
def grading(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`specdec grade` in a process group of its own, as a shell starts it."""
    command = [sys.executable, "-m", "specdec_lab", "grade", str(folder), *options]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, cwd=folder
    ) as process:
        try:
            yield process
        finally:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            process.kill()


def wait_for(path: Path, text: str) -> None:
    """Until a file contains this text."""
    for _ in range(600):
        if path.is_file() and text in path.read_text(encoding="utf-8"):
            return
        time.sleep(0.1)
    raise AssertionError(f"{path.name} does not contain {text!r} after a minute")


def answer(process: subprocess.Popen[bytes], seconds: float) -> str:
    """What it prints to stderr within so many seconds."""
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        if not selector.select(seconds):
            return ""
        return os.read(process.stderr.fileno(), 1000).decode()


@pytest.mark.parametrize("to_all", [True, False], ids=["as a terminal sends it", "to the grader alone"])
def test_ctrl_c_is_answered_at_once_and_what_is_finished_is_kept(to_all: bool, tmp_path: Path) -> None:
    notebook(tmp_path / "class" / "a", RIGHT)
    for name in "bcd":
        notebook(tmp_path / "class" / name, SLEEPS, RIGHT)
    out = tmp_path / "out"
    with grading(tmp_path / "class", "--out", str(out), "--jobs", "2") as process:
        wait_for(out / "graded.jsonl", '"submission": "a"')
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        if to_all:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        said = answer(process, SOON)
        assert "stopping; finished results are saved, and the same command continues from there" in said
        assert process.wait(SOON) == 130
    assert psutil.wait_procs(children, SOON)[1] == []
    lines = (out / "graded.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["submission"] for line in lines] == ["a"]
    assert not (out / "scores.csv").exists()


def started(folder: Path) -> str:
    """A cell that writes a file, which shows that the cell ran."""
    return f"open({str(folder / 'started')!r}, 'w').write('yes')"


@pytest.mark.parametrize(
    "loop",
    [
        "while True:\n    pass",
        "import time\ntime.sleep(600)",
        "while True:\n    try: 1 / 0\n    except Exception: pass",
    ],
)
def test_ctrl_c_ends_one_s_own_loop(loop: str, tmp_path: Path) -> None:
    notebook(tmp_path / "own", started(tmp_path), loop, RIGHT)
    with grading(tmp_path / "own", "--trusted") as process:
        wait_for(tmp_path / "started", "yes")
        process.send_signal(signal.SIGINT)
        assert "stopping" in answer(process, SOON)
        assert process.wait(SOON) == 130


def test_ctrl_c_ends_one_s_own_answer(tmp_path: Path) -> None:
    notebook(tmp_path / "own", f"def accepts(p, q, u):\n    {started(tmp_path)}\n    while True:\n        pass", RIGHT)
    with grading(tmp_path / "own", "--trusted") as process:
        wait_for(tmp_path / "started", "yes")
        process.send_signal(signal.SIGINT)
        assert "stopping" in answer(process, SOON)
        assert process.wait(SOON) == 130


def test_a_second_ctrl_c_ends_what_catches_the_first(tmp_path: Path) -> None:
    loop = (
        f"while True:\n    try:\n        {started(tmp_path)}\n        while True: pass\n    except BaseException: pass"
    )
    notebook(tmp_path / "own", loop, RIGHT)
    with grading(tmp_path / "own", "--trusted") as process:
        wait_for(tmp_path / "started", "yes")
        process.send_signal(signal.SIGINT)
        assert "stopping" in answer(process, SOON)
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == -signal.SIGINT
