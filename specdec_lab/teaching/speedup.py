"""Lesson 03's explorer: the speedup of each k, for any α and any costs."""

from typing import TYPE_CHECKING, Any

from specdec_lab import plotting
from specdec_lab.teaching.figures import as_png
from specdec_lab.teaching.widgets import show
from specdec_ref.errors import SpecdecError, is_number
from specdec_ref.theory import best_k, predicted_speedup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_K = 16


@plotting.styled
def speedup_figure(alpha: float, c: float, growth: float = 0.0, overhead: float = 0.0) -> "Figure":
    """The predicted speedup of k = 0 … `MAX_K`, with the best marked.

    Args:
        alpha: acceptance rate, 0 … 1.
        c: time of a draft step, in target steps.
        growth: cost of each further scored token, in target steps: v(n) = 1 + growth·(n − 1).
        overhead: o, in target steps.

    Raises:
        SpecdecError: an argument is out of range.
    """
    if not is_number(growth) or growth < 0:
        raise SpecdecError(f"growth={growth!r:.80}: takes a number ≥ 0, in target steps per scored token")

    def v(n: int) -> float:
        return 1 + growth * (n - 1)

    ks = range(MAX_K + 1)
    gains = [float(predicted_speedup(alpha, k, c, v, overhead)) for k in ks]
    best = best_k(alpha, c, v, overhead, MAX_K)
    title = (
        f"Draft {best} tokens: {gains[best]:.2f} times as fast" if best else "Do not draft: every k is slower than none"
    )
    figure, axes = plotting.new_figure(title, "drafted tokens, k", "speedup S (autoregressive = 1)", height=3.2)
    axes.axhline(1, color=plotting.FORMULA, linestyle="--", linewidth=1, label="autoregressive")
    axes.plot(ks, gains, "o-", color=plotting.TARGET)
    axes.plot([best], [gains[best]], "*", color=plotting.ACCEPTED, markersize=15, label=f"best: k = {best}")
    axes.set_ylim(0, max(2.0, 1.3 * max(gains)))
    axes.set_xticks(range(0, MAX_K + 1, 2))
    axes.legend(loc="upper right", ncols=2)
    return figure


def speedup_explorer(alpha: float = 0.7, c: float = 0.1, growth: float = 0.0, overhead: float = 0.0) -> None:
    """Four sliders, α, c, the growth of v, and o, and the speedup of each k. The arguments are their first values."""
    import ipywidgets as w

    def slider(value: float, top: float, step: float, name: str) -> Any:
        value = min(max(round(value / step) * step, 0.0), top)
        return w.FloatSlider(value=value, min=0, max=top, step=step, description=name, continuous_update=False)

    sliders = [
        slider(alpha, 0.99, 0.01, "α"),
        slider(c, 0.5, 0.01, "c"),
        slider(growth, 0.5, 0.01, "v per token"),
        slider(overhead, 0.5, 0.01, "o"),
    ]

    def figure() -> "Figure":
        return speedup_figure(*(control.value for control in sliders))

    start = figure()
    image = w.Image(value=as_png(start), format="png", width=700)

    def redraw(_: Any) -> None:
        image.value = as_png(figure())

    for control in sliders:
        control.observe(redraw, names="value")
    show(w.VBox([w.HBox(sliders[:2]), w.HBox(sliders[2:]), image]), start)
