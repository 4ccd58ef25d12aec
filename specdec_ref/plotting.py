"""How things look, everywhere: one palette and one mark for each thing, one matplotlib style, one function a figure.

Nothing is told by colour alone. The palette is Okabe and Ito's, which colour-blind readers can tell apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "#0072B2"
DRAFT = "#E69F00"
ACCEPTED = "#009E73"
REJECTED = "#D55E00"
BONUS = "#CC79A7"
FORMULA = "#7F7F7F"

ACCEPTED_MARK, REJECTED_MARK, BONUS_MARK = "✓", "✗", "★"


@contextmanager
def style() -> Iterator[None]:
    """The project's matplotlib style, for the figures drawn inside."""
    import matplotlib.pyplot as plt

    with plt.style.context(Path(str(resources.files("specdec_ref"))) / "specdec.mplstyle"):
        yield


def speedup_over_k(
    measured: Mapping[str, Sequence[tuple[int, float]]], predicted: Mapping[str, Sequence[tuple[int, float]]]
) -> "Figure":
    """Speedup against k: measured points beside the formula's curve, one colour and one marker for each mode.

    measured, predicted: mode → (k, speedup) pairs. The title states the best measured point.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(6.4, 3.6))
        for (mode, points), colour, marker in zip(measured.items(), (TARGET, DRAFT, ACCEPTED), "os^", strict=False):
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=f"{mode}, measured")
            axes.plot(*zip(*predicted[mode], strict=True), "--", color=colour, linewidth=1, label=f"{mode}, formula")
        best_mode, (best_k, best) = max(
            ((mode, max(points, key=lambda point: point[1])) for mode, points in measured.items()),
            key=lambda b: b[1][1],
        )
        axes.axhline(1, color=FORMULA, linewidth=1, linestyle=":")
        axes.annotate("one by one", (axes.get_xlim()[1], 1), ha="right", va="bottom", color=FORMULA)
        axes.set(xlabel="k, tokens drafted per round", ylabel="speedup over one by one", ylim=(0, None))
        axes.set_title(f"{best:.1f} times as fast at k = {best_k} ({best_mode})")
        axes.legend(ncols=2)
    return figure
