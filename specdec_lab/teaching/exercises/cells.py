"""Compile and run the cells of a notebook. `await` works at the top level, `%env NAME=value` sets the variable, and
other magic commands are skipped. This file imports nothing from the package."""

import ast
import asyncio
import inspect
import re
from types import CodeType
from typing import Any

MAGIC = re.compile(r"^(\s*)(?:[%!?].*|[\w.]+\?{1,2}|\w+\s*=\s*[%!].*)$", re.MULTILINE)
ENVIRONMENT = re.compile(r"^([ \t]*)%(?:set_)?env[ \t]+(\w+)(?:[ \t]*=[ \t]*|[ \t]+)(\S.*)$", re.MULTILINE)
OTHER_LANGUAGES = re.compile(r"\s*%%(?!time|capture|prun)")


def compiled(source: str, name: str) -> CodeType:
    """The code of a cell. If it is not valid Python, magic lines become `pass`, and a cell in another language becomes
    empty. Raises the exceptions of `compile`."""
    try:
        return _compiled(source, name)
    except SyntaxError:
        if OTHER_LANGUAGES.match(source):
            return _compiled("", name)
        plain = MAGIC.sub(r"\1pass", ENVIRONMENT.sub(_sets_variable, source))
        if plain == source:
            raise
        return _compiled(plain, name)


def _compiled(source: str, name: str) -> CodeType:
    code: CodeType = compile(source, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


def _sets_variable(match: re.Match[str]) -> str:
    """`%env NAME=value` as Python."""
    indentation, name, value = match.groups()
    return f"{indentation}__import__('os').environ[{name!r}] = {value.strip()!r}"


def run(sources: list[str], names: dict[str, Any], through: tuple[type[BaseException], ...] = ()) -> list[str]:
    """Run cells in order, and continue after an exception unless it is one of `through`. Returns one line per failure,
    syntax errors first."""
    syntax: list[str] = []
    other_errors: list[str] = []
    runner = asyncio.Runner()  # its loop starts when a cell first awaits something
    for number, source in enumerate(sources, 1):
        try:
            code = compiled(source, f"<cell {number}>")
            waits = eval(code, names)
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(waits)
        except SyntaxError as error:
            syntax.append(f"SyntaxError: {error.msg} (line {error.lineno} of cell {number})")
        except through:
            raise
        except BaseException as error:
            other_errors.append(describe_error(error))
    try:
        runner.close()
    except through:
        raise
    except BaseException as error:
        other_errors.append(describe_error(error))
    return [*syntax, *other_errors]


def describe_error(error: BaseException) -> str:
    """An exception as one line, even if its `__str__` raises."""
    try:
        return f"{type(error).__name__}: {error}"[:300].removesuffix(": ")
    except BaseException:
        return type(error).__name__[:300]
