"""Tests of exactness: does the output have the target's distribution? By enumeration and by experiment.

`exact` proves it for our own loop, on small models. `empirical` tests any sampler. `mutants` holds wrong versions, and
`museum` shows which tests catch them.
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
    if name in _HOMES:  # loaded when first used, because scipy loads slowly
        home = import_module(f"{__name__}.{_HOMES[name]}")
        return getattr(home, name, home)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """A package gets an attribute for each file that is loaded; a function of the same name takes precedence."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name, value) if name in __all__ else value)


sys.modules[__name__].__class__ = _Package
