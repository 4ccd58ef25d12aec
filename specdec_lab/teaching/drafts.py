"""Figures for choosing a draft: predicted speedup over α and c, measured speedups, and α over temperature."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab import plotting
from specdec_lab.teaching.figures import as_png
from specdec_lab.teaching.widgets import show
from specdec_ref.errors import SpecdecError
from specdec_ref.theory import Cost, predicted_speedup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (1.25, 1.5, 2.0, 2.5, 3.0)
MOST_K = 6
MARKS = "os^Dv"
"""One mark for each draft, the same in every figure."""
STYLES = (":", "-", "--", "-.", (0, (1, 3)))


@plotting.styled
def speedup_map(drafts: Mapping[str, tuple[float, float]], v: Cost, overhead: float = 0.0) -> "Figure":
    """Lines of equal predicted speedup over c and α, each at the best k ≤ 6, with the drafts as points.

    Args:
        drafts: name → (c, α).
        v: as `predicted_speedup` takes it; called for 2 … 7 tokens.
        overhead: per round, in target steps.

    Raises:
        SpecdecError: for a v or an overhead that `predicted_speedup` does not take.
    """
    widest = max([0.3, *(1.25 * c for c, _ in drafts.values())])
    alphas, costs = np.linspace(0.3, 0.98, 80), np.linspace(0.005, widest, 60)
    best = np.array([np.max(_gains(alphas, c, v, overhead), 0) for c in costs]).T
    figure, axes = plotting.new_figure(
        "", "cost of a draft step, c (target steps)", "acceptance rate α", width=7.4, height=4.2
    )
    lines = axes.contour(costs, alphas, best, levels=LEVELS, colors=plotting.FORMULA, linewidths=1, linestyles="--")
    visible = [line[0] for line in lines.allsegs if line and len(line[0])]
    starts = [line[np.argmin(abs(line[:, 0] - line[:, 0].min() - 0.08 * widest))] for line in visible]
    if starts:  # label each line at its left end, because most drafts and their labels are further to the right
        axes.clabel(lines, fmt=lambda level: f"{level:g}×", fontsize=9, manual=starts, zorder=2.5)
    if best.min() < 1:
        axes.contourf(costs, alphas, best, levels=[0, 1], colors=[plotting.REJECTED], alpha=0.15)
        axes.text(0.99 * widest, 0.31, "slower than autoregressive", ha="right", fontsize=9, color=plotting.REJECTED)
    gains = {}
    for i, (name, (c, alpha)) in enumerate(drafts.items()):
        gain = _gains(alpha, c, v, overhead)
        gains[name] = float(max(gain))
        axes.plot(c, alpha, MARKS[i % 5], color=plotting.DRAFT, markeredgecolor="black", markersize=9)
        words = f"{name}: {max(gain):.2f}× (k = {1 + int(np.argmax(gain))})"
        side = 1 if c < 0.6 * widest else -1  # keep the label on the map
        ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
        axes.annotate(
            words, (c, alpha), xytext=(9 * side, 0), textcoords="offset points", fontsize=9, va="center",
            ha="left" if side > 0 else "right", bbox=ground,
        )  # fmt: skip
    if gains:
        winner = max(gains, key=lambda name: gains[name])
        axes.set_title(f"Best predicted speedup: {winner}, {gains[winner]:.2f}×")
    axes.set_ylim(0.3, 0.98)
    axes.set_xlim(0, widest)
    return figure


def _gains(alpha: Any, c: float, v: Cost, overhead: float) -> list[Any]:
    return [predicted_speedup(alpha, k, c, v, overhead) for k in range(1, MOST_K + 1)]


def draft_explorer(drafts: Mapping[str, tuple[float, float]], v: Cost) -> None:
    """`speedup_map` with two sliders: extra cost of each further scored token, and of each round, in target steps."""
    import ipywidgets as w

    per_token = w.FloatSlider(
        value=0, min=0, max=1, step=0.05, description="per further token", continuous_update=False
    )
    per_round = w.FloatSlider(value=0, min=0, max=1, step=0.05, description="per round", continuous_update=False)
    per_token.style.description_width = "initial"

    def cost_with(extra: float) -> Cost:
        return lambda n: (v(n) if callable(v) else v) + extra * (n - 1)

    start = speedup_map(drafts, cost_with(0))
    image = w.Image(value=as_png(start), format="png", width=740)

    def redraw(_: Any) -> None:
        image.value = as_png(speedup_map(drafts, cost_with(per_token.value), per_round.value))

    for slider in (per_token, per_round):
        slider.observe(redraw, names="value")
    show(w.VBox([w.HBox([per_token, per_round]), image]), start)


@plotting.styled
def realized_figure(
    measured: Mapping[str, float],
    predicted: Mapping[str, float],
    words: Sequence[str],
    noise: Sequence[float] | None = None,
) -> "Figure":
    """Measured speedup of each draft as a bar, and the formula's prediction as a black line.

    The title names the fastest draft, and every draft whose difference from it is within the noise of both.

    Args:
        measured: name → speedup.
        predicted: name → speedup, for some of these drafts or all.
        words: text below each bar.
        noise: two standard errors of each measured speedup.

    Raises:
        SpecdecError: where these are not about the same drafts.
    """
    wide = dict(zip(measured, noise or [0.0] * len(measured), strict=False))
    if not measured or not len(words) == len(measured) == len(wide) or not set(predicted) <= set(measured):
        raise SpecdecError("measured, predicted, words, noise: take the same drafts, at least one")
    best = max(measured, key=lambda name: measured[name])
    near = [n for n in measured if n != best and measured[best] - measured[n] < np.hypot(wide[best], wide[n])]
    title = f"Fastest in this run: {best}, {measured[best]:.2f}×"
    if near:
        title += f"; within noise: {', '.join(near)}"
    figure, axes = plotting.new_figure(title, "", "speedup over autoregressive")
    at = np.arange(len(measured))
    axes.bar(at, list(measured.values()), 0.55, color=plotting.TARGET, label="measured")
    for index, gain in enumerate(measured.values()):  # at the foot of the bar, where nothing else is drawn
        axes.annotate(
            f"{gain:.2f}", (index, 0), xytext=(0, 5), textcoords="offset points", ha="center", color="white", fontsize=9
        )
    for label, i in zip(("formula", *[None] * len(predicted)), predicted, strict=False):
        x = list(measured).index(i)
        axes.hlines(predicted[i], x - 0.36, x + 0.36, color="black", linewidth=2, label=label)
    axes.axhline(1, color=plotting.FORMULA, linewidth=1, linestyle="--", label="autoregressive")
    axes.set_xticks(at, [f"{name}\n{line}" for name, line in zip(measured, words, strict=True)])
    if noise:
        axes.errorbar(at, list(measured.values()), noise, fmt="none", ecolor="black", elinewidth=1, capsize=4)
    axes.set_ylim(0, 1.3 * max(*(measured[name] + wide[name] for name in measured), *predicted.values(), 1))
    axes.grid(axis="x", visible=False)
    axes.legend(ncols=3, loc="upper left")
    return figure


@plotting.styled
def temperature_figure(
    temperatures: Sequence[float], rates: Mapping[str, Sequence[float]], agreement: Mapping[str, float]
) -> "Figure":
    """α of every draft over the temperature.

    Args:
        temperatures: rising.
        rates: name → α at each temperature.
        agreement: name → share of positions where draft and target have the same most likely token; shown at 0.
    """
    figure, axes = plotting.new_figure("α depends on the temperature", "temperature", "acceptance rate α", height=4.0)
    for i, (name, alphas) in enumerate(rates.items()):
        kwargs: dict[str, Any] = {"marker": MARKS[i % 5], "color": plotting.DRAFT, "markeredgecolor": "black"}
        axes.plot(temperatures, alphas, linestyle=STYLES[i % 5], **kwargs)
        axes.plot(0, agreement[name], **(kwargs | {"markerfacecolor": "white"}), clip_on=False, zorder=3)
        axes.annotate(
            name, (temperatures[-1], alphas[-1]), xytext=(7, 0), textcoords="offset points", fontsize=9, va="center"
        )
    axes.set_xlim(0, 1.22 * max(temperatures))
    return figure
