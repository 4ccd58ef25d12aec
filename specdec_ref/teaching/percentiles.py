"""How little a p99 of few samples says: the estimates that many experiments of one size would give."""

from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_ref import plotting
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.teaching.pictures import as_png
from specdec_ref.teaching.widgets import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

EXPERIMENTS = 2_000
Z99 = 2.3263478740408408


def p99_estimates(samples: int, spread: float, seed: int = 0) -> "NDArray[np.float64]":
    """p99 over the true one, [2,000]: of experiments of `samples` log-normal latencies with that standard deviation.

    Raises SpecdecError.
    """
    if not is_whole(samples) or samples < 1 or not is_number(spread) or not 0 <= spread <= 3:
        raise SpecdecError(f"samples={samples!r:.40}, spread={spread!r:.40}: take a whole number ≥ 1, and 0 … 3")
    latencies = np.exp(spread * np.random.default_rng(seed).standard_normal((EXPERIMENTS, samples)))
    estimates: NDArray[np.float64] = np.percentile(latencies, 99, axis=1) / np.exp(Z99 * spread)
    return estimates


@plotting.styled
def p99_figure(samples: int, spread: float = 0.3) -> "Figure":
    """A histogram of those estimates, and the middle 90 % of them."""
    estimates = p99_estimates(samples, spread)
    low, high = np.percentile(estimates, [5, 95])
    figure, axes = plotting.new_figure(
        f"p99 of {samples} samples: mostly between {low:.2f} and {high:.2f} of the true one",
        "estimated p99 / true p99",
        "share of experiments",
    )
    bins = np.linspace(0.3, 1.9, 65)
    axes.hist(estimates.clip(0.3, 1.9), bins=bins, weights=[1 / EXPERIMENTS] * EXPERIMENTS, color=plotting.TARGET)
    axes.axvspan(float(low), float(high), color=plotting.FORMULA, alpha=0.2, linewidth=0)
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_xlim(0.3, 1.9)
    return figure


def p99_explorer() -> None:
    """`p99_figure` with sliders for the number of samples and the spread of latencies."""
    import ipywidgets as w

    samples = w.SelectionSlider(
        options=[20, 60, 120, 368, 1000, 3000], value=60, description="samples", continuous_update=False
    )
    spread = w.FloatSlider(value=0.3, min=0.05, max=1, step=0.05, description="spread", continuous_update=False)
    start = p99_figure(samples.value, spread.value)
    image = w.Image(value=as_png(start), format="png", width=700)

    def redraw(_: Any) -> None:
        image.value = as_png(p99_figure(samples.value, spread.value))

    for slider in (samples, spread):
        slider.observe(redraw, names="value")
    show(w.VBox([w.HBox([samples, spread]), image]), start)
