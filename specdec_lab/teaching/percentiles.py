"""Figures of what few samples can show: percentiles, single comparisons, and a machine that gets slower."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab import plotting
from specdec_lab.teaching.figures import as_png
from specdec_lab.teaching.widgets import show
from specdec_ref.errors import SpecdecError, is_number, is_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

EXPERIMENTS = 2_000
Z99 = 2.3263478740408408


def p99_estimates(samples: int, spread: float, seed: int = 0) -> "NDArray[np.float64]":
    """The p99 of each of 2,000 simulated experiments, divided by the true p99, [2,000].

    Args:
        samples: latencies in one experiment.
        spread: standard deviation of the logarithm of a latency, which is normal.
        seed: of the simulation.

    Raises:
        SpecdecError: for values that these are not.
    """
    if not is_whole(samples) or samples < 1 or not is_number(spread) or not 0 <= spread <= 3:
        raise SpecdecError(f"samples={samples!r:.40}, spread={spread!r:.40}: take a whole number ≥ 1, and 0 … 3")
    latencies = np.exp(spread * np.random.default_rng(seed).standard_normal((EXPERIMENTS, samples)))
    estimates: NDArray[np.float64] = np.percentile(latencies, 99, axis=1) / np.exp(Z99 * spread)
    return estimates


@plotting.styled
def p99_figure(samples: int, spread: float = 0.3) -> "Figure":
    """A histogram of `p99_estimates`, and the interval that contains the middle 90 % of them."""
    estimates = p99_estimates(samples, spread)
    low, high = np.percentile(estimates, [5, 95])
    figure, axes = plotting.new_figure(
        f"{samples} samples: the reported p99 is {low:.2f} to {high:.2f} times the true p99",
        "estimated p99 / true p99",
        "share of experiments",
    )
    bins = np.linspace(0.3, 1.9, 65)
    axes.axvspan(float(low), float(high), color="#E0E0E0", linewidth=0, zorder=0.5, label="90 % of experiments")
    weights = [1 / EXPERIMENTS] * EXPERIMENTS
    axes.hist(estimates.clip(0.3, 1.9), bins=bins, weights=weights, color=plotting.TARGET, label="all experiments")
    axes.axvline(1, color="black", linewidth=1.2, label="the true p99")
    axes.set_xlim(0.3, 1.9)
    axes.legend(loc="upper right")
    return figure


@plotting.styled
def comparisons_figure(speedups: Sequence[float], tokens_per_round: Sequence[float], middle: Any) -> "Figure":
    """Speedups of single comparisons over the tokens per round that each of them got.

    Args:
        speedups: one for each comparison.
        tokens_per_round: of the same comparisons.
        middle: (low, high), the interval of the median speedup.

    Raises:
        SpecdecError: where the lengths differ, or both are 0.
    """
    if len(speedups) != len(tokens_per_round) or not len(speedups):
        raise SpecdecError(f"speedups, tokens_per_round: have {len(speedups)} and {len(tokens_per_round)} entries")
    figure, axes = plotting.new_figure(
        f"A single comparison can show anything from {min(speedups):.2f}× to {max(speedups):.2f}×",
        "tokens per round in this run", "speedup in this comparison", height=3.4,
    )  # fmt: skip
    axes.axhspan(*middle, color="#E0E0E0", linewidth=0, zorder=0.5, label="95 % interval of the median")
    median = float(np.median(speedups))
    axes.axhline(median, color=plotting.FORMULA, linestyle="--", label=f"median, {median:.2f}")
    axes.plot(tokens_per_round, speedups, "o", color=plotting.TARGET, label="one comparison")
    axes.set_ylim(0, 1.45 * max(speedups))
    axes.legend(loc="upper left", ncols=2)
    return figure


@plotting.styled
def turns_figure(plans: Mapping[str, Sequence[tuple[str, float]]]) -> "Figure":
    """Run times of two equally fast contenders on a machine that gets slower, one panel for each plan.

    Args:
        plans: name → (contender, time) in order of the runs, contenders 'A' and 'B'. Dashed lines show the median of
            each, and the panel's title their ratio.
    """
    figure, axes = plotting.new_figure(
        "", "run", "duration of a run\n(1 = at the start)", width=7.4, height=3.0, ncols=len(plans), sharey=True,
        squeeze=False,
    )  # fmt: skip
    for panel, (name, runs) in zip(axes.flat, plans.items(), strict=True):
        times = {who: [(i, t) for i, (contender, t) in enumerate(runs, 1) if contender == who] for who in "AB"}
        middle = {}
        for who, mark, color in (("A", "o", plotting.TARGET), ("B", "^", plotting.DRAFT)):
            panel.plot(*zip(*times[who], strict=True), mark, color=color, label=who)
            middle[who] = np.median([t for _, t in times[who]])
            panel.hlines(middle[who], times[who][0][0], times[who][-1][0], color=color, linestyle="--")
        ratio = middle["B"] / middle["A"]
        panel.set_title(f"{name}: B / A = {ratio:.2f}")
        panel.set_ylim(0, 1.1 * max(t for _, t in runs))
        panel.set_xlim(0, len(runs) + 1)
    for panel in axes.flat[1:]:
        panel.set_ylabel("")
    axes.flat[0].legend(loc="lower left", ncols=2)
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
