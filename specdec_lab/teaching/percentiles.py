"""How little a few samples say: p99s that many experiments would give, single comparisons, and a machine that drifts.

The last figure compares a widely copied table of expected speedups, which nobody measured, with the formula.
"""

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
    axes.axvspan(float(low), float(high), color="#E0E0E0", linewidth=0, zorder=0.5, label="nine tenths of them")
    weights = [1 / EXPERIMENTS] * EXPERIMENTS
    axes.hist(estimates.clip(0.3, 1.9), bins=bins, weights=weights, color=plotting.TARGET, label="experiments")
    axes.axvline(1, color="black", linewidth=1.2, label="the true p99")
    axes.set_xlim(0.3, 1.9)
    axes.legend(loc="upper right")
    return figure


@plotting.styled
def comparisons_figure(speedups: Sequence[float], tokens_per_round: Sequence[float], middle: Any) -> "Figure":
    """Speedups of single comparisons over the luck that each had with its text. middle: interval of their median.

    Raises SpecdecError.
    """
    if len(speedups) != len(tokens_per_round) or not len(speedups):
        raise SpecdecError(f"speedups, tokens_per_round: have {len(speedups)} and {len(tokens_per_round)} entries")
    figure, axes = plotting.new_figure(
        f"One comparison may say anything from {min(speedups):.2f} to {max(speedups):.2f}",
        "tokens per round in this run", "speedup of this comparison", height=3.4,
    )  # fmt: skip
    axes.axhspan(*middle, color="#E0E0E0", linewidth=0, zorder=0.5, label="95 % interval of the median")
    median = float(np.median(speedups))
    axes.axhline(median, color=plotting.FORMULA, linestyle="--", label=f"median, {median:.2f}")
    axes.plot(tokens_per_round, speedups, "o", color=plotting.TARGET, label="one run against one run")
    axes.set_ylim(0, 1.45 * max(speedups))
    axes.legend(loc="upper left", ncols=2)
    return figure


@plotting.styled
def turns_figure(plans: Mapping[str, Sequence[tuple[str, float]]]) -> "Figure":
    """Two equal contenders on a machine that gets slower: their times in the order of each plan, one panel a plan.

    plans: name → (contender, time) in order, contenders 'A' and 'B'. Dashed, the median of
    either; each panel's title gives their ratio.
    """
    figure, axes = plotting.new_figure(
        "", "run", "time of a run\n(times that at the start)", width=7.4, height=3.0, ncols=len(plans), sharey=True,
        squeeze=False,
    )  # fmt: skip
    for one, (name, runs) in zip(axes.flat, plans.items(), strict=True):
        times = {who: [(i, t) for i, (other, t) in enumerate(runs, 1) if other == who] for who in "AB"}
        middle = {}
        for who, mark, color in (("A", "o", plotting.TARGET), ("B", "^", plotting.DRAFT)):
            one.plot(*zip(*times[who], strict=True), mark, color=color, label=who)
            middle[who] = np.median([t for _, t in times[who]])
            one.hlines(middle[who], times[who][0][0], times[who][-1][0], color=color, linestyle="--")
        ratio = middle["B"] / middle["A"]
        one.set_title(f"{name}: B / A = {ratio:.2f}")
        one.set_ylim(0, 1.1 * max(t for _, t in runs))
        one.set_xlim(0, len(runs) + 1)
    for one in axes.flat[1:]:
        one.set_ylabel("")
    axes.flat[0].legend(loc="lower left", ncols=2)
    return figure


@plotting.styled
def expected_figure(
    claims: Mapping[str, tuple[float, float]], formula: Mapping[str, tuple[float, float]], ours: Mapping[str, Any]
) -> "Figure":
    """Ranges of speedup that a table claims, and the formula's for the same drafts; below them, what was measured.

    claims, formula: name → (lowest, highest). ours: name → (speedup, interval or None).
    """
    figure, axes = plotting.new_figure(
        "Claimed without a measurement, and measured", "speedup (times one by one)", "", height=3.2
    )
    names = [*claims, *ours]
    for y, name in enumerate(claims):
        for at, (low, high), color, label in (
            (y - 0.14, claims[name], plotting.FORMULA, "the table's claim"),
            (y + 0.14, formula[name], "black", "formula, its α and r, v = 1"),
        ):
            axes.plot([low, high], [at, at], "|-", color=color, linewidth=3, label="" if y else label)
    for y, (speedup, interval) in enumerate(ours.values(), len(claims)):
        first = y == len(claims)
        if interval:
            axes.plot(interval, [y, y], color=plotting.TARGET, linewidth=2.5, alpha=0.5)
        axes.plot(speedup, y, "o", color=plotting.TARGET, label="measured here, 95 % interval" if first else "")
        axes.annotate(
            f"{speedup:.2f}", (speedup, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=9
        )
    axes.axvline(1, color=plotting.FORMULA, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
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
