"""Which draft is worth having: the map of the formula over acceptance and cost, with drafts as points on it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_ref import plotting
from specdec_ref.errors import SpecdecError, is_number
from specdec_ref.teaching.pictures import as_png
from specdec_ref.teaching.widgets import show
from specdec_ref.theory import predicted_speedup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
MOST_K = 8


@plotting.styled
def speedup_map(drafts: Mapping[str, tuple[float, float]], slope: float, overhead: float = 0.0) -> "Figure":
    """Lines of equal speedup over c and α, each at its best k ≤ 8, and the drafts.

    drafts: name → (c, α). slope: what each further scored token costs in target steps, so v(n) = 1 + slope·(n − 1).
    overhead: per round, in target steps. Raises SpecdecError.
    """
    for name, value in (("slope", slope), ("overhead", overhead)):
        if not is_number(value) or value < 0:
            raise SpecdecError(f"{name}={value!r:.80}: takes a number ≥ 0")
    widest = max([0.3, *(1.25 * c for c, _ in drafts.values())])
    alphas, costs = np.linspace(0.3, 0.98, 80), np.linspace(0.005, widest, 60)
    best = np.array(
        [
            np.max(
                [predicted_speedup(alphas, k, c, lambda n: 1 + slope * (n - 1), overhead) for k in range(1, MOST_K)], 0
            )
            for c in costs
        ]
    ).T
    figure, axes = plotting.new_figure(
        "", "cost of a draft step, c (target steps)", "acceptance rate α", width=7.4, height=4.2
    )
    lines = axes.contour(costs, alphas, best, levels=LEVELS, colors=plotting.FORMULA, linewidths=1, linestyles="--")
    axes.clabel(lines, fmt=lambda level: f"{level:g}×", fontsize=9)
    axes.contourf(costs, alphas, best, levels=[0, 1], colors=[plotting.REJECTED], alpha=0.15)
    gains = {}
    for i, (name, (c, alpha)) in enumerate(drafts.items()):
        gain = [predicted_speedup(alpha, k, c, lambda n: 1 + slope * (n - 1), overhead) for k in range(1, MOST_K)]
        gains[name] = max(gain)
        k = 1 + int(np.argmax(gain))
        axes.plot(c, alpha, "os^Dv"[i % 5], color=plotting.DRAFT, markeredgecolor="black", markersize=9)
        words = f"{name}: {max(gain):.2f}× (k = {k})"
        axes.annotate(words, (c, alpha), xytext=(9, 0), textcoords="offset points", fontsize=9, va="center")
    if gains:
        winner = max(gains, key=lambda name: gains[name])
        axes.set_title(f"Best here: {winner}, {gains[winner]:.2f}× (red: speculation loses)")
    axes.set_ylim(0.3, 0.98)
    axes.set_xlim(0, widest)
    return figure


def draft_explorer(drafts: Mapping[str, tuple[float, float]], slope: float) -> None:
    """`speedup_map` with sliders for what a further scored token and a round's overhead cost."""
    import ipywidgets as w

    slope = round(slope, 2)
    one = w.FloatSlider(value=slope, min=0, max=0.5, step=0.01, description="per token", continuous_update=False)
    two = w.FloatSlider(value=0, min=0, max=1, step=0.05, description="per round", continuous_update=False)
    start = speedup_map(drafts, slope)
    image = w.Image(value=as_png(start), format="png", width=740)

    def redraw(_: Any) -> None:
        image.value = as_png(speedup_map(drafts, one.value, two.value))

    for slider in (one, two):
        slider.observe(redraw, names="value")
    show(w.VBox([w.HBox([one, two]), image]), start)
