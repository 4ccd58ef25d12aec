"""Is what comes out distributed exactly as the target says? Proven by enumeration, tested by experiment.

exact: the proof, of our own loop on small tables. empirical: the test, for anybody's sampler. mutants: wrong versions
that both have to catch, and `museum`, which shows that they do.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from specdec_lab.equivalence.exact import Proof, exact
from specdec_lab.equivalence.tables import TableModel

_HOMES = {"empirical": "empirical", "museum": "museum", "MUTANTS": "mutants", "Mutant": "mutants", "mutant": "mutants"}

__all__ = ["Proof", "TableModel", "exact", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # loaded when first used: scipy takes its time
        home = import_module(f"{__name__}.{_HOMES[name]}")
        return getattr(home, name, home)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """Python names a package's attribute after each file it loads; a function of that name stays in front of it."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name, value) if name in __all__ else value)


sys.modules[__name__].__class__ = _Package
