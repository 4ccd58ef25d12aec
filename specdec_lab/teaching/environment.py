"""The environment check of lesson 00: what is installed, what is missing, and what to do about it."""

import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

NEEDED = {
    "torch": "the models",
    "transformers": "the models",
    "matplotlib": "the figures",
    "ipywidgets": "the explorers",
    "scipy": "the statistics",
    "pandas": "some tables",
}


@dataclass(frozen=True)
class EnvironmentCheck:
    """One line of the check.

    Attributes:
        what: the item, in words.
        fine: whether it is all right.
        found: its version or state.
        remedy: what to do if it is not all right.
    """

    what: str
    fine: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Environment:
    """All lines. Shown as a table in a notebook."""

    checks: tuple[EnvironmentCheck, ...]

    @property
    def ready(self) -> bool:
        """Whether every lesson can run here."""
        return all(check.fine for check in self.checks)

    def _repr_html_(self) -> str:
        lines = "".join(
            f"<tr><td style='text-align:center'>{'✓' if c.fine else '✗'}</td><td style='text-align:left'>{c.what}</td>"
            f"<td style='text-align:left'>{c.found}</td><td style='text-align:left'>{c.remedy}</td></tr>"
            for c in self.checks
        )
        head = "<tr><th></th><th style='text-align:left'>what</th><th style='text-align:left'>found</th><th></th></tr>"
        return f"<table>{head}{lines}</table>"

    def __str__(self) -> str:
        return "\n".join(
            f"{'✓' if c.fine else '✗'} {c.what}: {c.found}{'  → ' + c.remedy if c.remedy else ''}" for c in self.checks
        )

    __repr__ = __str__


def check_environment() -> Environment:
    """Look at Python, packages, the pair that ships, processor and GPU. Changes nothing and uses no network."""
    python = sys.version_info
    checks = [
        EnvironmentCheck(
            "Python",
            (3, 11) <= python[:2] <= (3, 13),
            platform.python_version(),
            "" if (3, 11) <= python[:2] <= (3, 13) else "the course is tested with 3.11 to 3.13",
        )
    ]
    for package, purpose in NEEDED.items():
        there = importlib.util.find_spec(package) is not None
        checks.append(
            EnvironmentCheck(
                f"{package} ({purpose})",
                there,
                _version(package) if there else "not installed",
                "" if there else "run `make lab` in the course's folder, or pip install -e '.[course]'",
            )
        )
    if all(check.fine for check in checks if check.what.endswith("(the models)")):
        checks += _models_and_machine()
    return Environment(tuple(checks))


def _models_and_machine() -> list[EnvironmentCheck]:
    """The checks that need torch and transformers."""
    import torch

    from specdec_ref.loading import shipped

    models = shipped()
    whole = "target" in models and len(models) >= 2
    remedy = "" if whole else "get the repository again; the weights are in specdec_ref/pretrained"
    threads = torch.get_num_threads()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (not needed)"
    return [
        EnvironmentCheck("models that ship", whole, ", ".join(models) or "none", remedy),
        EnvironmentCheck("processor", True, f"{os.cpu_count()} cores, {threads} used by torch"),
        EnvironmentCheck("GPU", True, gpu),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "there"
