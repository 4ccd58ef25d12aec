"""Which names the cells of a notebook seem to define, judged by their text.

The grader never parses a student's code, because code can be written to crash a parser or to keep it busy. The
functions here read single lines, in time proportional to the length of the text. The final decision is made by running
the cells in the sandbox.
"""

import re
from collections.abc import Sequence

COMPARISON = re.compile(r"[=!<>]=")
COMPOUND = re.compile(r"(?:if|elif|else|try|except|finally|for|while|with)\b[^:]*:")
OPENS_A_BODY = re.compile(r"(?:async\s+def|def|class)\b")
TARGETS = re.compile(r"[\w\s,()\[\]*.]*")
CALL_OR_LAMBDA = re.compile(r"\w\s*\(|\blambda\b")


def mentions(sources: Sequence[str], name: str) -> bool:
    """Whether any line except comments contains this name. A notebook without such a line cannot define it."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    for source in sources:
        if name not in source:
            continue
        for line in source.splitlines():
            if name in line and not line.lstrip().startswith("#") and word.search(line):
                return True
    return False


def defines(source: str, name: str) -> bool:
    """Whether a cell seems to define this name outside the body of any function or class."""
    if name not in source:
        return False
    body_of: int | None = None  # indentation of the function or class whose body contains these lines
    for line in source.splitlines():
        text = line.lstrip()
        if not text or text.startswith("#"):
            continue
        indentation = len(line) - len(text)
        if body_of is not None and indentation > body_of:
            continue
        body_of = indentation if OPENS_A_BODY.match(text) else None
        if name in text and _line_defines(text, name):
            return True
    return False


def _line_defines(text: str, name: str) -> bool:
    """Whether one line of code, without its indentation, binds this name."""
    word = re.escape(name)
    if re.match(rf"(?:(?:async\s+)?def|class)\s+{word}\b", text):
        return True
    if re.search(rf"\b{word}\s*:=|\bas\s+{word}\b|\bas\s+\([\w\s,]*?\b{word}\b", text):
        return True
    return _imports(text, word) or _loops_over(text, word) or _assigns(text, name)


def _imports(text: str, word: str) -> bool:
    """`import name`, `from module import other, name`; not `import name as other`."""
    match = re.search(r"\bimport\b", text)
    return match is not None and re.search(rf"\b{word}\b(?!\s+as\b)", text[match.end() :]) is not None


def _loops_over(text: str, word: str) -> bool:
    """`for name in …`, `for other, name in …`."""
    if not re.match(r"(?:async\s+)?for\b", text):
        return False
    return re.search(rf"\b{word}\b", text.partition(" in ")[0]) is not None


def _assigns(text: str, name: str) -> bool:
    """Whether the name is a target of an assignment: alone, in a chain, in a tuple, annotated, or after `if …:`."""
    plain = COMPARISON.sub("  ", text)
    if opening := COMPOUND.match(plain):
        plain = plain[opening.end() :]
    for statement in plain.split(";"):
        first, *further = statement.split("=")[:-1] or [""]
        if any(_is_target(target, name) for target in (first.partition(":")[0], *further)):
            return True
    return False


def _is_target(text: str, name: str) -> bool:
    """Whether the text to the left of an equals sign is a list of targets that includes this name."""
    if name not in text or not TARGETS.fullmatch(text) or CALL_OR_LAMBDA.search(text):
        return False
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)(?!\s*[.\[(])", text) is not None
