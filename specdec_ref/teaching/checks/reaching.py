"""Whether an answer calls the package itself, which holds the answers, and is not there when graded from outside."""

import dis
import types
from typing import Any

NOTE = "it uses specdec_ref, which is not there when you are graded from outside: write that part yourself"


def reaches_for_the_package(function: Any) -> str:
    """A note for the learner, or nothing. Looks at the names that the function and its helpers use."""
    return NOTE if _reaches(function, set()) else ""


def _reaches(value: Any, seen: set[int]) -> bool:
    if id(value) in seen or len(seen) > 200:
        return False
    seen.add(id(value))
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0] == "specdec_ref"
    home = getattr(value, "__module__", "")
    if isinstance(home, str) and home.split(".")[0] == "specdec_ref":
        return True
    if not isinstance(value, types.FunctionType) or home not in ("__main__", None):
        return False
    names, imports = _names(value.__code__)
    closure = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    used = [value.__globals__[name] for name in names if name in value.__globals__]
    return any(i.split(".")[0] == "specdec_ref" for i in imports) or any(_reaches(v, seen) for v in (*used, *closure))


def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Global names, and modules imported, in this code and what is defined in it."""
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
