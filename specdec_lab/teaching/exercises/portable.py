"""Whether an answer that works in the learner's notebook also works in the grader, and if not, why.

The grader receives only the notebook: no other files, not this package, and no names from cells that were deleted.
"""

import dis
import functools
import inspect
import os
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from specdec_lab.teaching.exercises.cells import compiled
from specdec_lab.teaching.exercises.handed_in import sources_of
from specdec_ref.errors import SpecdecError

MOST_USED = 200
"""Limit on the names that are followed from one function."""
PACKAGES = "specdec_ref", "specdec_lab"
GIVEN = "display", "In", "Out"
"""Names that exist in every notebook."""
UNKNOWN = "import *", "exec(", "globals()", "%run", "%load"
"""A notebook that contains one of these may define names that this module cannot see."""
FOR_OTHERS = "stdlib", "platstdlib", "purelib", "platlib"


def why_not_graded(function: Any) -> str:
    """One line, 'this will not be graded, because …', or an empty text if there is no known reason."""
    try:
        reason = _beside_the_notebook(function) or _from_the_package(function) or _not_in_the_saved_notebook(function)
    except Exception:  # an answer may contain any object, and a warning must not fail
        return ""
    return f"this will not be graded, because {reason}" if reason else ""


def _beside_the_notebook(function: Any) -> str:
    """A module that is neither installed nor part of Python, such as a helper.py or a file from %%writefile."""
    for name, value in _used(function):
        module = _home(name, value)
        if module is not None and _is_own_file(module):
            file = Path(str(module.__file__)).name
            return f"{name} comes from {file}, but you submit only the notebook: copy the code that you use into a cell"
    return ""


def _from_the_package(function: Any) -> str:
    """A list, a dict or a tensor from the packages. `reaching` finds their functions and modules."""
    for name, value in _used(function):
        module = _home(name, value)
        if module is not None and _is_package(module.__name__) and _is_container(value):
            package = module.__name__.split(".")[0]
            return f"{name} comes from {package}, which is not available to the grader: define it in a cell"
    return ""


def _not_in_the_saved_notebook(function: Any) -> str:
    """A name that only a deleted or unsaved cell defines, or a notebook that is too large."""
    notebook = _saved_notebook()
    if notebook is None:
        return ""
    try:
        sources = sources_of(notebook)
    except SpecdecError as error:
        return str(error)
    if any(word in source for source in sources for word in UNKNOWN):
        return ""
    defined = {name for source in sources for name in _defined(source)}
    if getattr(function, "__name__", "") not in defined:
        return ""  # the answer itself is not saved yet
    for name, value in _used(function):
        if name not in defined and name not in GIVEN and not isinstance(value, types.ModuleType):
            return f"no cell of the saved {notebook.name} defines {name}: restore that cell, or save the notebook"
    return ""


def _saved_notebook() -> Path | None:
    """The file of the running notebook, if Jupyter or VS Code provides its path."""
    notebook_path = getattr(sys.modules["__main__"], "__vsc_ipynb_file__", None) or os.environ.get(
        "JPY_SESSION_NAME", ""
    )
    for path in (Path(str(notebook_path)), Path(Path(str(notebook_path)).name)):
        if path.suffix == ".ipynb" and path.is_file():
            return path
    return None


def _defined(source: str) -> set[str]:
    """The names that a cell defines at its top level."""
    try:
        code = compiled(source, "cell")
    except SyntaxError:
        return set()
    return {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("STORE_NAME", "STORE_GLOBAL")}


def _used(function: Any) -> Iterator[tuple[str, Any]]:
    """Each global name that a function of the notebook uses, directly or in its helpers, with its value."""
    waiting: list[tuple[str, Any]] = [(getattr(function, "__name__", "it"), function)]
    seen: set[str] = set()
    while waiting and len(seen) < MOST_USED:
        name, value = waiting.pop()
        yield name, value
        plain = _plain_function(value)
        if plain is None or plain.__module__ != "__main__":
            continue
        read, imported = _names_in(plain.__code__)
        known = {dependency: plain.__globals__[dependency] for dependency in read if dependency in plain.__globals__}
        known |= {dependency: sys.modules[dependency] for dependency in imported if dependency in sys.modules}
        for dependency in sorted(known.keys() - seen):
            seen.add(dependency)
            waiting.append((dependency, known[dependency]))


def _plain_function(value: Any) -> types.FunctionType | None:
    """The function without decorators and `partial`."""
    if isinstance(value, functools.partial):
        value = value.func
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, types.FunctionType) else None


def _names_in(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Global names that this code reads, and modules that it imports, including functions defined in it."""
    steps = list(dis.get_instructions(code))
    read = {str(step.argval) for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    imported = {str(step.argval) for step in steps if step.opname == "IMPORT_NAME"}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more_read, more_imported = _names_in(inner)
            read |= more_read
            imported |= more_imported
    return read, imported


def _home(name: str, value: Any) -> types.ModuleType | None:
    """The module of a value: itself, that of a function or class, or the one that contains a list, dict or tensor."""
    if isinstance(value, types.ModuleType):
        return value
    if _is_container(value):
        for module in list(sys.modules.values()):
            known = getattr(module, "__name__", "")
            if known == "__main__" or not isinstance(module, types.ModuleType):
                continue
            if (_is_package(known) or _is_own_file(module)) and vars(module).get(name) is value:
                return module
        return None
    home = getattr(value, "__module__", None)
    return sys.modules.get(home) if isinstance(home, str) and home != "__main__" else None


def _is_container(value: Any) -> bool:
    return isinstance(value, (list, dict, set, tuple, torch.Tensor))


def _is_package(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


def _is_own_file(module: types.ModuleType) -> bool:
    """Whether a module is the learner's own file: not installed, and not part of Python or of this package."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or _is_package(module.__name__) or module.__name__ == "__main__":
        return False
    path = Path(file).resolve()
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in FOR_OTHERS]
    if any(path.is_relative_to(folder) for folder in installed):
        return False
    return not {"site-packages", "dist-packages"} & set(path.parts)
