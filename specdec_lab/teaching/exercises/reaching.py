"""Whether an answer calls the course's packages, which contain the solutions and are not available to the grader."""

import dis
import types
from typing import Any

PACKAGES = "specdec_ref", "specdec_lab"


def reaches_for_the_package(function: Any) -> str:
    """A note for the learner if the function or one of its helpers uses a package of the course, else an empty text."""
    package = _package_in(function, set())
    if package is None:
        return ""
    return f"your function uses {package}, which is not available to the grader: write that part yourself"


def _package_in(value: Any, seen: set[int]) -> str | None:
    """The package of the course that a value belongs to, or that a function of the notebook uses; else None."""
    if id(value) in seen or len(seen) > 200:
        return None
    seen.add(id(value))
    if isinstance(value, types.ModuleType):
        return _package_of(value.__name__)
    home = getattr(value, "__module__", "")
    package = _package_of(home) if isinstance(home, str) else None
    if package is not None or not isinstance(value, types.FunctionType) or home not in ("__main__", None):
        return package
    names, imports = _names(value.__code__)
    closure = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    used = [value.__globals__[name] for name in names if name in value.__globals__]
    packages = [*map(_package_of, imports), *(_package_in(inner, seen) for inner in (*used, *closure))]
    return next((package for package in packages if package is not None), None)


def _package_of(module: str) -> str | None:
    package = module.split(".")[0]
    return package if package in PACKAGES else None


def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Global names and imported modules in this code and in the functions defined in it."""
    names: set[str] = set()
    imports: set[str] = set()
    for step in dis.get_instructions(code):
        if step.opname.startswith("LOAD_GLOBAL") or step.opname == "LOAD_NAME":
            names.add(str(step.argval))
        elif step.opname == "IMPORT_NAME":
            imports.add(str(step.argval))
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = _names(inner)
            names |= more[0]
            imports |= more[1]
    return names, imports


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
