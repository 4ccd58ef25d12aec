"""specdec_lab: the laboratory. It measures the reference, proves it, teaches with it and grades exercises.

It imports `specdec_ref`, which never imports it. `__init__.pyi` lists the public names. A module is imported when one
of its names is first used.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from specdec_ref import public_names

_modules = public_names(Path(__file__).parent)
__all__ = sorted(_modules)


def __getattr__(name: str) -> Any:
    module = _modules.get(name)
    if module is None:
        raise AttributeError(f"module 'specdec_lab' has no attribute {name!r}")
    return import_module(f"specdec_lab.{name}") if module == "specdec_lab" else getattr(import_module(module), name)


def __dir__() -> list[str]:
    return __all__
