"""A wrong answer with its diagnosis: the text in exercise 01, and the picture docs/diagnosis.svg.

python -m specdec_lab.teaching.exercises.sample docs/diagnosis.svg
"""

import inspect
import io
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.judging import judge
from specdec_lab.teaching.exercises.showing import COLORS, plain


# fmt: off
def residual(p, q):  # type: ignore[no-untyped-def]
    return p
# fmt: on


def answer() -> str:
    """The source of the wrong answer, as a learner would write it."""
    return re.sub(r"  # type: .*", "", inspect.getsource(residual))


def diagnosis() -> str:
    """The result of the check of exercise 02 for this answer, as plain text."""
    return plain(judge(EXERCISES["residual"], residual))


def picture() -> str:
    """The answer, the call of `check` and its result, as an SVG picture."""
    console = Console(record=True, width=84, file=io.StringIO(), highlight=False)
    call: Any = Syntax(f'{answer()}\ncheck("residual", residual)', "python", theme="ansi_dark")
    console.print(call)
    headline, _, rest = diagnosis().partition("\n")
    console.print(Text(f"\n{headline}", style=f"bold {COLORS['wrong']}"))
    console.print(Text(rest))
    svg = console.export_svg(title="A wrong answer to exercise 02", unique_id="diagnosis")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from the web


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
