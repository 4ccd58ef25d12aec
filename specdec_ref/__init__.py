"""specdec_ref: the reference implementation of speculative decoding for the course.

Begin with `minimal.py`, then `acceptance.py`, then `decoding.py`. `__init__.pyi` lists the public
names. A module is imported when one of its names is first used, so `import specdec_ref as sd` is
fast.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def public_names(package: Path) -> dict[str, str]:
    """The module that each name in a package's `__init__.pyi` comes from."""
    stub = ast.parse((package / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_modules = public_names(Path(__file__).parent)
__all__ = sorted(_modules)


def __getattr__(name: str) -> Any:
    if name in _modules:
        return getattr(import_module(_modules[name]), name)
    raise AttributeError(f"module 'specdec_ref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
