"""How things look, everywhere: one colour and one mark for each thing, and nothing told by colour alone.

The palette is Okabe and Ito's, which colour-blind readers can tell apart. matplotlib is imported when something is
drawn.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "#0072B2"
DRAFT = "#E69F00"
ACCEPTED = "#009E73"
REJECTED = "#D55E00"
BONUS = "#CC79A7"
FORMULA = "#7F7F7F"

ACCEPTED_MARK, REJECTED_MARK, BONUS_MARK = "✓", "✗", "★"

STYLE = Path(__file__).with_name("style.mplstyle")

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """For functions that draw: titles, labels and legends in the course's style, whatever the caller has set."""

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import style

        with style.context(STYLE):
            return draw(*args, **kwargs)

    return drawing


def new_figure(
    title: str, x: str = "", y: str = "", *, width: float = 7.0, height: float = 3.6, **subplots: Any
) -> "tuple[Figure, Any]":
    """An empty figure in the course's style and its axes: one, or an array with `nrows=…` or `ncols=…`.

    title: the one message, in words. x, y: what the axes show, with units. width, height: inches. The figure belongs
    to nobody but the caller (it is not pyplot's), so a notebook shows it where it is a cell's last value.
    """
    import sys

    from matplotlib import style
    from matplotlib.figure import Figure

    if "ipykernel" in sys.modules:
        import matplotlib.pyplot  # noqa: F401 - teaches the notebook how to show a Figure

    with style.context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(**subplots)
        first = axes if not hasattr(axes, "flat") else axes.flat[0]
        if title:
            first.set_title(title)
        for one in [axes] if first is axes else axes.flat:
            one.set_xlabel(x)
            one.set_ylabel(y)
    return figure, axes
