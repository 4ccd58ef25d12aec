"""The promises of the layout: imports go one way and in no circle, names mean one thing, public names are explained."""

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import specdec_lab as lab
import specdec_ref as sd

REFERENCE, LABORATORY = Path(sd.__file__).parent, Path(lab.__file__).parent
FILES = sorted(path for package in (REFERENCE, LABORATORY) for path in package.rglob("*.py"))
MODULES = {".".join(path.relative_to(path.parents[len(path.relative_to(package).parts)]).with_suffix("").parts): path
           for package in (REFERENCE, LABORATORY) for path in package.rglob("*.py")}  # fmt: skip
HEAVY = "matplotlib", "prometheus_client", "psutil", "rich", "scipy", "typer"
"""What only the laboratory needs."""


def imports(path: Path) -> set[str]:
    """Modules of the two packages that a file imports, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in ("specdec_ref", "specdec_lab")
        ):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def test_the_reference_imports_nothing_of_the_laboratory() -> None:
    for path in REFERENCE.rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith("specdec_lab")], path


def test_no_imports_go_in_a_circle() -> None:
    """Also not inside functions. A module leaves the graph once all that it imports has left; a circle would remain."""
    graph = {name: imports(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    while ready := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in ready:
            del graph[name]
    assert not graph


def test_the_reference_works_without_what_only_the_laboratory_needs() -> None:
    """In a process in which these packages cannot be imported. transformers itself looks for some of them."""
    code = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *more):
        return None if name.split(".")[0] in {HEAVY!r} else self.finder.find_spec(name, *more)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
import specdec_ref as sd
for name in sd.__all__:
    getattr(sd, name)
pair = sd.load_pair(device="cpu")
print(len(sd.generate_speculative(pair, "def f", k=3, max_new_tokens=8, seed=0).tokens))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "8", run.stderr


@pytest.mark.parametrize("package", [REFERENCE, LABORATORY], ids=lambda package: package.name)
def test_a_file_name_stands_once_in_a_package(package: Path) -> None:
    names = Counter(path.name for path in package.rglob("*.py") if not path.name.startswith("__"))
    assert [name for name, times in names.items() if times > 1] == []


def test_a_class_name_stands_once_in_both_packages() -> None:
    names: Counter[str] = Counter()
    for path in FILES:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names.update({node.name for node in nodes if isinstance(node, ast.ClassDef)})
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("package", [REFERENCE, LABORATORY], ids=lambda package: package.name)
def test_no_private_name_is_imported_from_another_file(package: Path) -> None:
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("specdec"):
                assert not [a.name for a in node.names if a.name.startswith("_") and a.name != "__version__"], path


def test_nothing_below_the_models_knows_transformers() -> None:
    for name in ("sampling", "acceptance", "theory", "cache", "minimal"):
        text = (REFERENCE / f"{name}.py").read_text(encoding="utf-8")
        assert "import transformers" not in text, name
        assert "from transformers" not in text, name


def test_only_sampling_draws_random_numbers() -> None:
    """`Randomness` is the only source of randomness in decoding: the exact proof replaces it and nothing else."""
    sources = "rand(", "randint(", "multinomial(", "exponential_(", "bernoulli", "import random"
    for path in REFERENCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "sampling.py" or not [s for s in sources if s in text], path


@pytest.mark.parametrize("name", sd.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    """A method that a protocol explains need not be explained again where it is implemented."""
    value = getattr(sd, name)
    if name.isupper():  # a constant
        return
    assert inspect.getdoc(value), name
    declared = {m for protocol in (sd.LanguageModel, sd.Drafter, sd.Controller, sd.Randomness) for m in vars(protocol)}
    for method, function in vars(value).items() if inspect.isclass(value) else ():
        if not method.startswith("_") and inspect.isfunction(function) and method not in declared:
            assert inspect.getdoc(getattr(value, method)), f"{name}.{method}"


@pytest.mark.parametrize("name", [name for name in sd.__all__ if not name.isupper()])
def test_what_raises_an_error_says_so(name: str) -> None:
    value = getattr(sd, name)
    source = inspect.getsource(value)
    if name != "SpecdecError" and re.search(r"raise SpecdecError|\b_check\(", source):
        assert "SpecdecError" in (inspect.getdoc(value) or ""), name
