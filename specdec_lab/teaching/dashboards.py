"""Figures of a monitor's statistics: rates by position, a histogram of accepted tokens, and marks where texts begin."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab import plotting
from specdec_lab.monitoring.live import MonitorStatistics
from specdec_lab.teaching.figures import as_png
from specdec_lab.teaching.widgets import show
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.theory import expected_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure


BELOW_LEGEND = 0.85
"""Height of the lines that mark texts, as a share of the axes."""


@plotting.styled
def expected_dashboard(alpha: float, k: int) -> "Figure":
    """The rates that a monitor shows at each position if every token is accepted with probability α: α, and αⁱ.

    Args:
        alpha: acceptance rate, 0 … 1.
        k: drafted tokens per round.

    Raises:
        SpecdecError: for values that these are not.
    """
    if not is_number(alpha) or not 0 <= alpha <= 1 or not is_whole(k) or k < 1:
        raise SpecdecError(f"alpha={alpha!r:.40}, k={k!r:.40}: take a share, 0 … 1, and a whole number ≥ 1")
    emitted = float(expected_tokens(alpha, k))
    title = f"α is {alpha:.2f}, but accepted / drafted is {(emitted - 1) / k:.2f} at k = {k}"
    positions = np.arange(1, k + 1)
    return _positions(title, np.full(k, alpha), alpha**positions, (emitted - 1) / k)


@plotting.styled
def position_figure(statistics: MonitorStatistics) -> "Figure":
    """Measured rates at each position, and accepted / drafted over all positions.

    Raises:
        SpecdecError: where nothing was drafted.
    """
    if not statistics.drafted:
        raise SpecdecError("statistics: nothing was drafted, so there is no rate to show")
    conditional, unconditional = (
        np.array(rates) for rates in (statistics.conditional_rates, statistics.unconditional_rates)
    )
    title = f"α is {statistics.acceptance_rate:.2f}; accepted / drafted is {statistics.draft_acceptance_rate:.2f}"
    return _positions(title, conditional, unconditional, statistics.draft_acceptance_rate)


@plotting.styled
def histogram_figure(statistics: MonitorStatistics) -> "Figure":
    """Drafts by the number of their accepted tokens, and the numbers to expect if every token had the same α.

    The expected shares are αⁱ(1 − α) for i < k accepted tokens and αᵏ for all k, where k is the longest draft.

    Raises:
        SpecdecError: where nothing was drafted.
    """
    if not statistics.drafts:
        raise SpecdecError("statistics: nothing was drafted, so there is no rate to show")
    counts, alpha = np.array(statistics.accepted_histogram), statistics.acceptance_rate
    at = np.arange(len(counts))
    expected = statistics.drafts * np.where(at < at[-1], alpha**at * (1 - alpha), alpha ** at[-1])
    none, whole = counts[0] / statistics.drafts, counts[-1] / statistics.drafts
    title = f"{none:.0%} of drafts are rejected at the first token, {whole:.0%} are accepted in full"
    figure, axes = plotting.new_figure(title, "accepted tokens of a draft", "number of drafts", height=3.2)
    axes.bar(at, counts, 0.6, color=plotting.ACCEPTED, label="measured")
    axes.hlines(
        expected, at - 0.38, at + 0.38, color="black", linewidth=2, label=f"expected for α = {alpha:.2f} at every token"
    )
    axes.set_xticks(at)
    axes.set_ylim(0, 1.3 * max(counts.max(), expected.max()))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper right", ncols=2)
    return figure


def mark_texts(figure: "Figure", starts: Sequence[int]) -> "Figure":
    """Draw a vertical line and a number at the first round of each text, and return the figure.

    Args:
        figure: whose first axes have rounds on the horizontal axis, as `plot_acceptance_over_time` returns it.
        starts: number of the first round of each text, rising, the first at 1 or later.

    Raises:
        SpecdecError: where the numbers do not rise.
    """
    if list(starts) != sorted(set(starts)):
        raise SpecdecError(f"starts={list(starts)!r:.80}: takes rising numbers of rounds")
    axes = figure.axes[0]
    left, right = axes.get_xlim()
    for number, start in enumerate(starts, 1):
        axes.axvline(start, ymax=BELOW_LEGEND, color="black", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.text(start, 2, f" text {number}", fontsize=9, va="bottom")
    axes.set_xlim(min(left, *starts), right)
    return figure


def _positions(title: str, conditional: Any, unconditional: Any, pooled: float) -> "Figure":
    k = len(conditional)
    at = np.arange(1, k + 1)
    figure, axes = plotting.new_figure(title, "position in the draft", "share of tokens accepted")
    axes.bar(
        at - 0.2,
        conditional,
        0.38,
        color=plotting.ACCEPTED,
        label="of examined tokens (all before were accepted)",
    )
    axes.bar(at + 0.2, unconditional, 0.38, color=plotting.DRAFT, hatch="//", edgecolor="white", label="of all drafts")
    axes.axhline(pooled, color=plotting.FORMULA, linestyle="--", label="accepted / drafted, all positions")
    axes.set_xticks(at)
    axes.set_xlim(0.4, k + 0.6)
    axes.set_ylim(0, 1.45)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", ncols=1, frameon=False)
    return figure


def dashboard_explorer() -> None:
    """`expected_dashboard` with sliders for α and k."""
    import ipywidgets as w

    alpha = w.FloatSlider(value=0.8, min=0, max=1, step=0.05, description="α", continuous_update=False)
    k = w.IntSlider(value=4, min=1, max=12, description="k", continuous_update=False)
    start = expected_dashboard(alpha.value, k.value)
    image = w.Image(value=as_png(start), format="png", width=700)

    def redraw(_: Any) -> None:
        image.value = as_png(expected_dashboard(alpha.value, k.value))

    for slider in (alpha, k):
        slider.observe(redraw, names="value")
    show(w.VBox([w.HBox([alpha, k]), image]), start)
