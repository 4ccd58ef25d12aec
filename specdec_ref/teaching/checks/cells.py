"""A notebook's cells as Python: what only IPython understands is left out. Imports nothing of the package."""

import re
from types import CodeType
from typing import Any

MAGIC = re.compile(r"^(\s*)(?:[%!?].*|[\w.]+\?{1,2}|\w+\s*=\s*[%!].*)$", re.MULTILINE)
OTHER_LANGUAGES = re.compile(r"\s*%%(?!time|capture|prun)")


def compiled(source: str, name: str) -> CodeType:
    """The code of a cell. Where it is no Python as it stands, lines of magic are taken for `pass`, and cells in other
    languages for nothing. Raises what `compile` raises."""
    try:
        return compile(source, name, "exec")
    except SyntaxError:
        if OTHER_LANGUAGES.match(source):
            return compile("", name, "exec")
        plain = MAGIC.sub(r"\1pass", source)
        if plain == source:
            raise
        return compile(plain, name, "exec")


def run(sources: list[str], names: dict[str, Any], through: tuple[type[BaseException], ...] = ()) -> list[str]:
    """Run cells, one after the other, whatever happens in them but what is let through. Returns what failed, a line
    each; broken syntax first."""
    syntax: list[str] = []
    others: list[str] = []
    for number, source in enumerate(sources, 1):
        try:
            exec(compiled(source, f"<cell {number}>"), names)
        except SyntaxError as error:
            syntax.append(f"SyntaxError: {error.msg} (line {error.lineno} of cell {number})")
        except through:
            raise
        except BaseException as error:
            others.append(told(error))
    return [*syntax, *others]


def told(error: BaseException) -> str:
    """An exception in a line, even one that cannot say what it is."""
    try:
        return f"{type(error).__name__}: {error}"[:300].removesuffix(": ")
    except BaseException:
        return type(error).__name__[:300]
