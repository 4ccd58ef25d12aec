"""The files in .github/ and .devcontainer/ type what the README says, and what other tests run.

`make lint` checks these files against their published schemas. tests/test_release.py runs `make docs` and
`make dist`.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in ROOT.glob(".github/workflows/*.yml")
}
ALL_TESTS, BUILDS = ".ci/run", {"make docs", "make dist"}
NEWEST = "CONSTRAINTS=/dev/null .ci/run"


def steps(job: dict[str, Any]) -> list[str]:
    """The `run` lines of a job."""
    return [line for step in job["steps"] for line in step.get("run", "").splitlines()]


def readme_block(first: str) -> list[str]:
    """The README's code block that begins with this line, without comments."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"^```\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if b.startswith(first))
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


def test_linux_runs_every_test() -> None:
    assert steps(WORKFLOWS["ci"]["jobs"]["linux"]) == [ALL_TESTS]


def test_macos_runs_the_readmes_two_commands() -> None:
    assert steps(WORKFLOWS["ci"]["jobs"]["macos"]) == readme_block("make demo")


def test_windows_runs_the_readmes_lines_without_make_and_opens_no_browser() -> None:
    lines = readme_block("py -m venv")
    assert lines[-1].endswith("jupyter lab")
    assert steps(WORKFLOWS["ci"]["jobs"]["windows"]) == lines[:-1]


@pytest.mark.parametrize("system", ["linux", "macos", "windows"])
def test_each_system_runs_on_three_versions_of_python(system: str) -> None:
    assert WORKFLOWS["ci"]["jobs"][system]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_the_other_workflows_type_only_lines_that_tests_run() -> None:
    others = [
        line
        for name in ("nightly", "docs", "release")
        for job in WORKFLOWS[name]["jobs"].values()
        for line in steps(job)
    ]
    assert set(others) == {ALL_TESTS, NEWEST, *BUILDS}
    assert WORKFLOWS.keys() == {"ci", "nightly", "docs", "release"}


def test_the_nightly_run_installs_the_newest_versions() -> None:
    """Make only prints here what .ci/run would run at its end with the variable of the nightly line."""
    variable = NEWEST.split()[0]
    command = f"{variable} make --dry-run --always-make test-all"
    printed = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in printed.splitlines() if "pip install" in line and "-c" in line]
    assert installs
    assert all("-c /dev/null" in line for line in installs)


def test_actions_are_pinned_to_a_version() -> None:
    used = [
        step["uses"]
        for flow in WORKFLOWS.values()
        for job in flow["jobs"].values()
        for step in job["steps"]
        if "uses" in step
    ]
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", action)] == []


def test_every_job_has_a_time_limit_or_runs_no_command() -> None:
    jobs = [job for flow in WORKFLOWS.values() for job in flow["jobs"].values()]
    assert all(job["timeout-minutes"] <= 90 for job in jobs if steps(job))


def test_the_pull_request_template_has_five_lines() -> None:
    assert len((ROOT / ".github/pull_request_template.md").read_text(encoding="utf-8").splitlines()) == 5


def test_the_devcontainer_types_the_readmes_commands() -> None:
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [value for key, value in settings.items() if key.endswith("Command")]
    assert commands == ["make demo", "make lab"]
    assert all(command in readme for command in commands)
