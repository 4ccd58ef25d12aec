"""The promises of the house: a module imports only from floors below, wings keep apart, public names are explained."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import specdec_ref as sd

PACKAGE = Path(sd.__file__).parent
FLOORS = {
    "errors": -1,
    "plotting": -1,
    "web": -1,
    **dict.fromkeys(("sampling", "acceptance", "theory"), 0),
    **dict.fromkeys(("models", "rotary", "consistency", "capture", "packing", "graphs", "cache", "drafting"), 1),
    **dict.fromkeys(("decoding", "control", "monitoring", "live"), 2),
    **dict.fromkeys(("equivalence", "measurement", "teaching", "training", "serving"), 3),
    **dict.fromkeys(("cli", "cli_bench", "cli_doctor", "cli_equivalence", "cli_grade", "cli_vllm"), 4),
    "__main__": 5,
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def room(path: Path) -> str:
    """The module or wing that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("specdec_ref"):
            names = node.module.split(".")
            found |= {names[1]} if len(names) > 1 else {alias.name for alias in node.names}
    return found - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_the_same_floor_or_below_and_wings_keep_apart(path: Path) -> None:
    here = room(path)
    for other in imported_rooms(path) - {here}:
        assert FLOORS[other] <= FLOORS[here], f"{here} imports {other}"
        wings = FLOORS[here] == FLOORS[other] == 3
        assert not wings or (here, other) == ("teaching", "equivalence"), f"wing {here} imports wing {other}"


def test_nothing_below_the_models_knows_transformers() -> None:
    for path in FILES:
        if FLOORS[room(path)] <= 0 or room(path) == "cache":
            assert "import transformers" not in path.read_text(encoding="utf-8"), path
            assert "from transformers" not in path.read_text(encoding="utf-8"), path


def test_only_sampling_draws_random_numbers() -> None:
    """`Randomness` is the only source of chance in what decodes: the exact proof replaces it and nothing else."""
    sources = "rand(", "randint(", "multinomial(", "exponential_(", "bernoulli", "import random"
    for path in FILES:
        if FLOORS[room(path)] <= 2 and room(path) != "sampling":
            text = path.read_text(encoding="utf-8")
            assert not [s for s in sources if s in text], path


@pytest.mark.parametrize("name", sd.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    """A method that a protocol explains need not be explained again where it is implemented."""
    value = getattr(sd, name)
    if name.isupper():  # a constant
        return
    assert inspect.getdoc(value), name
    told = {m for protocol in (sd.LanguageModel, sd.Drafter, sd.Controller, sd.Randomness) for m in vars(protocol)}
    for method, function in vars(value).items() if inspect.isclass(value) else ():
        if not method.startswith("_") and inspect.isfunction(function) and method not in told:
            assert inspect.getdoc(getattr(value, method)), f"{name}.{method}"


@pytest.mark.parametrize("name", [name for name in sd.__all__ if not name.isupper()])
def test_what_raises_an_error_says_so(name: str) -> None:
    value = getattr(sd, name)
    source = inspect.getsource(value)
    if name != "SpecdecError" and re.search(r"raise SpecdecError|\b_check\(", source):
        assert "SpecdecError" in (inspect.getdoc(value) or ""), name
