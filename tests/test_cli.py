"""The promises of the command line: instant help, JSON that parses, exit status, errors of one line."""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from rich.console import Console
from typer.testing import CliRunner

from specdec_lab.cli.main import app
from specdec_lab.teaching.strip import round_text
from specdec_ref.decoding import Round
from specdec_ref.loading import Pair


def specdec(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "specdec_lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("module", ["specdec_ref", "specdec_lab", "specdec_lab.cli.main"])
def test_importing_is_light(module: str) -> None:
    """PyTorch alone takes seconds: neither `import specdec_ref` nor `specdec --help` may load it."""
    heavy = "torch", "transformers", "matplotlib", "scipy", "numpy"
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


COMMANDS = "demo bench equivalence doctor grade progress train vllm-config".split()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help_and_json(command: str) -> None:
    done = specdec(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert ("--json" in done.stdout) == bool(command)


def test_these_are_all_commands() -> None:
    listed = specdec("--help").stdout.split("Commands:")[1]
    assert sorted(line.split()[0] for line in listed.splitlines() if line.strip()) == sorted(COMMANDS)


@pytest.mark.timed
def test_the_demo_takes_less_than_a_minute() -> None:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "specdec_lab", "demo"], check=True, capture_output=True, timeout=300)
    assert time.perf_counter() - began < 60


@pytest.mark.timed
@pytest.mark.parametrize("code", ["import specdec_ref", "import sys; sys.argv = ['specdec', '--help']; main()"])
def test_import_and_help_take_under_a_second(code: str) -> None:
    """The best of three, since the first may read from disk."""
    code = code.replace("main()", "from specdec_lab.cli.main import main; main()")
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--device", "nonsense"), "device"),
        (("demo", "--target", "no/such/folder", "--device", "cpu"), "target"),
        (("bench", "--repeats", "0"), "--repeats 0"),
        (("bench", "--temperature", "-1"), "temperature"),
        (("train", "no-such-pair", "--card"), "no-such-pair"),
        (("train", __file__, "--tiny"), "is a file"),
        (("train", f"{__file__}/pair", "--tiny"), "pair.work: cannot be made"),
        (("demo", "--svg", "no/such/folder/demo.svg"), "--svg no/such/folder/demo.svg"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    arguments: tuple[str, ...], words: str, check_wrong_use: Callable[[tuple[str, ...], str], None]
) -> None:
    check_wrong_use(arguments, words)


def test_the_command_passes_its_exit_status_and_its_one_line_on() -> None:
    done = specdec("train", __file__, "--tiny")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert specdec("demo", "--nonsense").returncode == 2


@pytest.mark.slow
def test_demo_prints_json_with_everything_the_table_shows() -> None:
    done = specdec("demo", "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    modes = {mode["name"]: mode for mode in json.loads(done.stdout)["modes"]}
    assert set(modes) == {"greedy", "T = 1"}
    names = [way["name"] for way in modes["T = 1"]["ways"]]
    assert names == ["draft model", "draft model, block", "head, block"]
    assert [way["name"] for way in modes["greedy"]["ways"]] == ["draft model", "head"]
    assert modes["greedy"]["identical_texts"] == modes["greedy"]["texts"] == 12
    for mode in modes.values():
        assert mode["fastest"] == max(mode["ways"], key=lambda way: way["speedup"])["name"]
        for way in mode["ways"]:
            assert way["tokens_per_round"] > 1
            assert way["formula"] > 0


@pytest.fixture(scope="module")
def folders(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tiny pair on disk, so that a command takes seconds."""
    options = ["--device", "cpu"]
    for role, model in (("target", pair.target), ("draft", pair.draft)):
        folder = tmp_path_factory.mktemp(role)
        model.save_pretrained(folder)
        pair.tokenizer.save_pretrained(folder)
        options += [f"--{role}", str(folder)]
    return options


def test_demo_runs_with_a_pair_in_folders(folders: list[str]) -> None:
    done = CliRunner().invoke(app, ["demo", "--json", *folders])
    assert done.exit_code == 0, done.exception
    modes = {mode["name"]: mode for mode in json.loads(done.stdout)["modes"]}
    assert set(modes) == {"greedy", "T = 1"}
    assert [way["name"] for way in modes["greedy"]["ways"]] == ["draft model"]
    assert modes["greedy"]["identical_texts"] == modes["greedy"]["texts"] == 6
    assert len(modes["T = 1"]["ways"]) == 2


def test_bench_prints_one_result_for_every_k(folders: list[str]) -> None:
    size = ["--max-k", "2", "--tokens", "16", "--prompts", "1", "--repeats", "1"]
    done = CliRunner().invoke(app, ["bench", "--json", *folders, *size])
    assert done.exit_code == 0, done.exception
    assert [line["k"] for line in json.loads(done.stdout)["results"]] == [0, 1, 2]


class Letters:
    """A tokenizer of the alphabet."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i) for i in ids)


@pytest.mark.parametrize(
    ("played", "shown"),
    [
        (Round((0, 1, 2), 1, (0, 5), 0, 0), "a✗bf"),
        (Round((0, 1), 2, (0, 1, 2), 0, 0), "ab★c"),
        (Round((), 0, (3,), 0, 0), "d"),
        (Round((0, 1, 2), 3, (0, 1), 0, 0), "ab"),
    ],
    ids=["rejected and replaced", "all accepted", "nothing drafted", "ended inside the round"],
)
def test_rounds_are_distinguished_without_color(played: Round, shown: str) -> None:
    console = Console(no_color=True, width=80)
    with console.capture() as capture:
        console.print(round_text(played, Letters()), end="")
    assert capture.get() == shown
