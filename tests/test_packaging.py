"""The promises of the packaging: the lists of dependencies agree, and what the README says to type exists."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.main import get_command

from specdec_lab.cli.main import app
from specdec_lab.equivalence.mutants import MUTANTS
from specdec_lab.teaching.exercises.catalogue import EXERCISES

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
PINNED_EXTRAS = ("course", "dev")


def pins() -> dict[str, Version]:
    """Every line of constraints.txt must be an exact pin."""
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert requirement.name not in found, line
        found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def requirements() -> list[Requirement]:
    """What the package and its pinned extras ask for. An extra names `specdec_ref[lab]` for the laboratory's part."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["lab"], *(line for extra in PINNED_EXTRAS for line in extras[extra])]
    lines += SETTINGS["dependency-groups"]["build"]
    return [Requirement(line) for line in lines if not line.startswith("specdec_ref")]


def code_of(markdown: str) -> Iterator[str]:
    """The lines of fenced code blocks and the inline code of a Markdown text."""
    fence = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for block in fence.findall(markdown):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", fence.sub("", markdown))


def readme_commands() -> set[str]:
    """What the README's code says to type, without prompt signs and comments."""
    return commands_of("README.md")


def commands_of(page: str) -> set[str]:
    """What the code of a page says to type, without prompt signs and comments."""
    code = code_of((ROOT / page).read_text(encoding="utf-8"))
    return {re.sub(r"\s+#.*", "", line).strip().removeprefix("$ ").strip() for line in code}


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_what_was_tested_satisfies_what_is_asked_for(requirement: Requirement) -> None:
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_requirements_are_lower_bounds_only(requirement: Requirement) -> None:
    assert [s.operator for s in requirement.specifier] == [">="]


def test_pins_hold_on_every_machine() -> None:
    """A local version (`+cpu`, `+cu130`) exists for some machines only."""
    assert [name for name, version in pins().items() if version.local] == []


@pytest.mark.parametrize(("name", "oldest"), [("torch", "2.11.0"), ("transformers", "5.17.0")])
def test_promised_old_versions_are_admitted(name: str, oldest: str) -> None:
    (requirement,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == name)
    assert Version(oldest) in requirement.specifier


@pytest.mark.parametrize(
    ("version", "admitted"),
    [("3.10.99", False), ("3.11.0", True), ("3.12.0", True), ("3.13.99", True), ("3.14.0", True)],
)
def test_python_311_and_newer_is_admitted(version: str, admitted: bool) -> None:
    assert (version in SpecifierSet(PROJECT["requires-python"])) == admitted


def test_conda_environment_asks_for_the_same_python_and_leaves_the_rest_to_the_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, from_pip = environment["dependencies"]
    assert python.split(maxsplit=1)[0] == "python"
    assert SpecifierSet(python.split(maxsplit=1)[1]) == SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"
    assert from_pip == {"pip": ["-c constraints.txt", f"-e .[{','.join(PINNED_EXTRAS)}]"]}


def test_classifiers_name_the_admitted_pythons() -> None:
    named = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    assert named == {f"3.{minor}" for minor in range(9, 15) if f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])}


def test_ci_runs_every_test_and_at_most_installs_what_they_need() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test-all"
    assert "test-all: test " in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "make test" in readme_commands()


def test_ci_script_stops_at_the_first_failure() -> None:
    assert "set -euo pipefail" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_readmes_make_commands_have_a_target() -> None:
    named = {target for line in readme_commands() for target in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
    assert named >= {"demo", "test", "lab"}
    assert named <= make_targets()


@pytest.mark.parametrize(
    ("page", "fewest"),
    [
        ("README.md", 6),
        ("docs/how-to/own_pair.md", 2),
        ("docs/how-to/own_sampler.md", 2),
        ("docs/how-to/grade_a_class.md", 3),
        ("docs/how-to/vllm.md", 3),
    ],
)
def test_specdec_commands_of_a_page_and_their_options_exist(page: str, fewest: int) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    named = [line.split() for line in commands_of(page) if re.match(r"(\.venv\\Scripts\\)?specdec ", line)]
    assert len(named) >= fewest
    for _, name, *words in named:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "specdec_ref/pretrained/README.md"])
def test_links_lead_to_files_of_the_repository(page: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [
        link for link in links if ":" not in link and not (ROOT / page).parent.joinpath(link.split("#")[0]).exists()
    ] == []
    assert links or page != "README.md"


def test_every_make_target_is_in_the_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    helped = set(re.findall(r"^([a-z][a-z-]*):.*  ## ", makefile, re.MULTILINE))
    assert helped == make_targets()


def test_console_script_leads_to_a_function() -> None:
    module, function = PROJECT["scripts"]["specdec"].split(":")
    assert callable(getattr(import_module(module), function))


def test_licence_is_stated_and_its_text_is_there() -> None:
    assert PROJECT["license"] == "MIT"
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in PROJECT["license-files"]]
    assert [text.splitlines()[0] for text in texts] == ["MIT License"]


def test_package_says_that_it_is_typed() -> None:
    assert (ROOT / "specdec_ref" / "py.typed").is_file()


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"])
def test_set_up_names_no_package_index(name: str) -> None:
    """Where packages come from is the user's own choice and configuration."""
    assert not re.search(r"index-url|find-links|trusted-host", (ROOT / name).read_text(encoding="utf-8"))


def record(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def words_of(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_the_readmes_figures_are_those_on_record() -> None:
    words = words_of("README.md")
    at_one, greedy = (record("compare_peers")["modes"][mode]["ratios"] for mode in ("temperature 1", "greedy"))
    chain, best, assisted = (
        "best k / autoregressive",
        "best of ours / autoregressive",
        "best of ours / best of transformers assisted",
    )
    assert f"emits {at_one[chain]:.2f} times as many tokens per second" in words
    settings = f"k = {at_one['best k']}, α = {100 * at_one['acceptance']:.0f} %"
    assert f"(`draft-medium`, the default; {settings})" in words
    assert (at_one["best of ours"], greedy["best of ours"]) == ("head, block, k = 8", "suffix, k = 8")
    assert f"The feature head with block verification emits {at_one[best]:.2f} times as many (k = 8)" in words
    assert f"That is {at_one[assisted]:.2f} times the speed of transformers' assisted generation" in words
    assert f"reaches {greedy[chain]:.2f} times with the draft model and {greedy[best]:.2f} times with suffix" in words


def shown_tokens(mode: dict[str, Any]) -> float:
    """Tokens per round of the head with block verification at k = 8."""
    return float(mode["contenders"]["ours, head, block, k = 8"]["tokens_per_round"])


def test_the_readme_counts_what_there_is() -> None:
    words = words_of("README.md")
    museum = len(MUTANTS)
    reasoned = sum(mutant.by_reasoning for mutant in MUTANTS)
    assert f"{museum} wrong versions of the method" in words
    assert f"{museum - reasoned} were seen in public projects, and we constructed the other {reasoned}" in words
    assert (len(list((ROOT / "exercises").glob("*.ipynb"))), len(EXERCISES)) == (15, 19)
    assert "fifteen notebooks with nineteen graded functions" in words


def test_the_figures_of_the_benchmarks_page_are_those_on_record() -> None:
    words = words_of("docs/benchmarks.md")
    for mode in ("temperature 1", "greedy"):
        facts = record("compare_peers")["modes"][mode]
        shown = [
            c
            for name, c in facts["contenders"].items()
            if name.removeprefix("ours, ") == facts["ratios"]["best of ours"]
        ]
        assert f"{shown[0]['speedup']:.2f} (k = 8) | {shown[0]['tokens_per_round']:.2f}" in words
        baseline = facts["ratios"]["autoregressive / transformers generate"]
        assert f"{baseline:.2f}" in words
        assert f"{facts['ratios']['best of ours / best of transformers assisted']:.2f}" in words
        assert f"{facts['ratios']['formula']:.2f}" in words
    blocks = record("block_verification")["results"]
    gains = [100 * blocks[k]["same rounds"]["gain"] for k in ("4", "6")]
    assert "emits {:.0f} % more tokens per round at k = 4 and {:.0f} % more at k = 6".format(*gains) in words
    trees = record("trees")["results"]["greedy"]
    chain, tree = (trees[name]["tokens_per_round"] for name in ("chain, k = 4", "tree (3, 2, 1, 1), top-k"))
    assert f"emits {tree:.1f} tokens per round greedy, where a chain of four emits {chain:.1f}" in words
    at_one = record("compare_peers")["modes"]["temperature 1"]
    c, v, tokens = at_one["head costs"]["c"], at_one["head costs"]["v"]["9"], shown_tokens(at_one)
    cost = 8 * c + v
    assert f"costs 8 · {c:.3f} target steps for drafting and v(9) = {v:.2f} for scoring, {cost:.2f} together" in words
    assert f"It emits {tokens:.2f} tokens, so the formula gives {tokens / cost:.2f}" in words
    assert f"the same tokens would give {tokens / v:.2f}" in words
    steps = record("real_model")["v"]
    assert f"it takes {steps['plain']['5']:.1f} times as long" in words
    assert round(steps["auto"]["5"], 1) == 1.0  # 'as long as a step of one'


def test_the_readmes_lessons_have_the_titles_and_minutes_of_the_lessons() -> None:
    rows = re.findall(r"\| (\d\d) \| \[(.+)\]\(notebooks/(.+)\) \| (\d+) \|", (ROOT / "README.md").read_text("utf-8"))
    assert len(rows) == 11
    for number, title, name, minutes in rows:
        first = "".join(json.loads((ROOT / "notebooks" / name).read_text("utf-8"))["cells"][0]["source"])
        assert first.startswith(f"# {number} · {title}\n"), name
        assert re.search(r"^\*\*(\d+) minutes", first, re.MULTILINE)[1] == minutes, name  # type: ignore[index]


def test_the_readmes_picture_is_drawn_from_the_record(tmp_path: Path) -> None:
    drawn = tmp_path / "picture.svg"
    script = ROOT / "benchmarks" / "real_model.py"
    subprocess.run([sys.executable, script, "--svg", drawn], check=True, cwd=ROOT)
    assert drawn.read_text("utf-8") == (ROOT / "docs" / "real_model.svg").read_text("utf-8")
