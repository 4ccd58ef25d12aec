"""The how-to pages: their code and their commands run as they stand, with the pair that ships for TARGET and DRAFT."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import specdec_ref as sd

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "how-to"
SHIPPED = ROOT / "specdec_ref" / "pretrained"
STANDS_FOR = {"TARGET": str(SHIPPED / "target"), "DRAFT": str(SHIPPED / "draft-small")}
BLOCK = re.compile(r"^```(\w*)(?: title=\"([\w.]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """Title and text of the code blocks of a page in one language; '' is for commands."""
    found = BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    return [(title, text) for name, title, text in found if name == language]


def commands(page: str) -> list[list[str]]:
    """The `specdec` commands of a page that need no server."""
    lines = [line for _, text in blocks(page, "") for line in text.splitlines()]
    return [
        [STANDS_FOR.get(word, word) for word in shlex.split(line)]
        for line in lines
        if line.startswith("specdec ") and "http:" not in line and "/autograder" not in line
    ]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    line = [sys.executable, "-m", "specdec_lab", *command[1:]]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


def test_code_for_your_own_pair_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for _, code in blocks("own_pair", "python"):
        exec(compile(code, "own_pair.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert isinstance(names["g"], sd.Generation)


def test_code_for_a_head_runs(capsys: pytest.CaptureFixture[str]) -> None:
    ((_, code),) = blocks("train_a_head", "python")
    exec(compile(code, "train_a_head.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_table_of_the_heads_training_is_the_record() -> None:
    page = (PAGES / "train_a_head.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "benchmarks" / "results" / "head_training.json").read_text(encoding="utf-8"))
    for measured in record["feature"]["held_out"]:
        rates = " | ".join(f"{rate:.3f}" for rate in measured["acceptance"])
        assert re.search(rf"\| {measured['step']:,} \| [\d,]+ \| {re.escape(rates)} \|", page)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("own_pair"), ids=lambda words: words[1])
def test_commands_for_your_own_pair_run(command: list[str], tmp_path: Path) -> None:
    done = run(command, tmp_path)
    assert done.returncode in (0, 1), done.stderr  # 1: the doctor found something, which depends on the machine
    assert done.stdout


@pytest.mark.slow
def test_your_own_sampler_is_tested(tmp_path: Path) -> None:
    ((title, code),) = blocks("own_sampler", "python")
    (tmp_path / title).write_text(code, encoding="utf-8")
    (command,) = commands("own_sampler")
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
def test_a_class_is_graded(tmp_path: Path) -> None:
    for name in ("ada", "ben"):
        (tmp_path / "CLASS" / name).mkdir(parents=True)
        shutil.copy(ROOT / "exercises" / "01_accept.ipynb", tmp_path / "CLASS" / name)
    graded, *_ = commands("grade_a_class")
    done = run(graded, tmp_path)
    assert done.returncode == 1, done.stderr  # nothing was attempted
    assert (tmp_path / "REPORTS" / "scores.csv").is_file()
    assert (tmp_path / "REPORTS" / "reports" / "ada" / "results.json").is_file()


@pytest.mark.slow
def test_your_own_work_is_graded(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "exercises", tmp_path / "exercises")
    *_, own = commands("grade_a_class")
    assert "--trusted" in own
    assert run(own, tmp_path).returncode == 1


@pytest.mark.parametrize("command", commands("vllm"), ids=lambda words: " ".join(words[3:])[-20:])
def test_vllm_configurations_are_printed(command: list[str], tmp_path: Path) -> None:
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "num_speculative_tokens" in done.stdout
