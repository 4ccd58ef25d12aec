"""The visual style of the course: each kind of data has one color and one mark, so nothing is shown by color alone.

The palette is Okabe and Ito's, whose colors color-blind readers can distinguish. matplotlib is imported when a figure
is drawn.
"""

from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

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
    """Decorate a function that draws, so that titles, labels and legends have the course's style."""

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import style

        with style.context(STYLE):
            return draw(*args, **kwargs)

    return drawing


@cache
def _teach_the_notebook() -> None:
    """Make the notebook show figures that pyplot does not hold."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("png")


def new_figure(
    title: str, x: str = "", y: str = "", *, width: float = 7.0, height: float = 3.6, **subplots: Any
) -> "tuple[Figure, Any]":
    """An empty figure in the course's style and its axes: one, or an array with `nrows=…` or `ncols=…`.

    The figure belongs to the caller alone (pyplot does not hold it), so a notebook shows it if it is the last value of
    a cell.

    Args:
        title: the message of the figure.
        x, y: labels of the axes, with units.
        width, height: inches.
    """
    import sys

    from matplotlib import style
    from matplotlib.figure import Figure

    if "ipykernel" in sys.modules:
        _teach_the_notebook()

    with style.context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(**subplots)
        first = axes if not hasattr(axes, "flat") else axes.flat[0]
        if title:
            first.set_title(title)
        for panel in [axes] if first is axes else axes.flat:
            panel.set_xlabel(x)
            panel.set_ylabel(y)
            for name in ("legend", "set_title", "text", "annotate"):  # later additions of a lesson get the same style
                setattr(panel, name, styled(getattr(panel, name)))
    return figure, axes


@styled
def equivalence_figure(
    expected: "NDArray[np.float64]", observed: "NDArray[np.int64]", samples: "NDArray[np.int64]", title: str
) -> "Figure":
    """Observed / expected counts of outcomes, each [n], with the range of random variation, for `samples` of each.

    Inside the band are 95 % of the outcomes of a correct sampler. In one of 1,000 tests of a
    correct sampler, an outcome lies outside the dashed limit.
    """
    import numpy as np
    from matplotlib import ticker
    from scipy import stats

    limits = stats.norm.isf(0.025), stats.norm.isf(0.0005 / len(expected))
    spread = np.sqrt((1 - expected / samples) / expected)
    off = np.abs(observed / expected - 1) / np.maximum(spread, 1e-12)
    figure, axes = new_figure(title, "expected count of an outcome", "observed / expected count")
    x = np.geomspace(expected.min() * 0.9, min(expected.max() * 1.1, samples.max() * 0.999), 200)
    width = np.sqrt((1 - x / samples.max()) / x)
    band = f"95 % of outcomes of a correct sampler; here {np.mean(off <= limits[0]):.1%}"
    axes.fill_between(
        x, 1 - limits[0] * width, 1 + limits[0] * width, color=FORMULA, alpha=0.25, linewidth=0, label=band
    )
    for sign in (-1, 1):
        label = "all outcomes, in 999 of 1,000 correct samplers" if sign > 0 else None
        edge = np.maximum(0, 1 + sign * limits[1] * width)
        axes.plot(x, edge, color=FORMULA, linestyle="--", linewidth=1, label=label)
    inside = off <= limits[1]
    axes.plot(expected[inside], (observed / expected)[inside], ".", color=TARGET, markersize=4, label="an outcome")
    if not inside.all():
        outside = (observed / expected)[~inside]
        axes.plot(
            expected[~inside], outside, "x", color=REJECTED, label=f"{REJECTED_MARK} outside the limit: {len(outside)}"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend()
    return figure
