"""Figures of lesson 07: where the heuristic rests, how far controllers are from hindsight, which α breaks even."""

from collections.abc import Mapping, Sequence
from math import floor
from typing import TYPE_CHECKING

import numpy as np

from specdec_lab import plotting
from specdec_ref.errors import SpecdecError
from specdec_ref.theory import expected_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@plotting.styled
def set_point_figure(low: float = 0.6, high: float = 0.8, ks: Sequence[int] = (1, 2, 4, 8)) -> "Figure":
    """Accepted / proposed over α for each k: (α + … + αᵏ)/k; between `low` and `high` the heuristic leaves k alone."""
    alphas = np.linspace(0.5, 0.99, 60)
    figure, axes = plotting.new_figure(
        "One α, many 'acceptance rates': the ratio falls as k grows", "acceptance rate α", "accepted / proposed"
    )
    axes.axhspan(low, high, color=plotting.DRAFT, alpha=0.2, linewidth=0, label="the heuristic leaves k alone")
    for k, style in zip(ks, ("-", "--", "-.", ":"), strict=True):
        axes.plot(alphas, (expected_tokens(alphas, k) - 1) / k, style, color=plotting.TARGET, label=f"k = {k}")
    axes.axvline(0.8, color="black", linewidth=0.8)
    axes.annotate("α = 0.8", (0.8, 1), xytext=(-4, -4), textcoords="offset points", ha="right", va="top",
                  fontsize=9)  # fmt: skip
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right")
    return figure


@plotting.styled
def regret_figure(names: Sequence[str], relative: Mapping[str, Sequence[float]]) -> "Figure":
    """Speedup of each controller over that of the best fixed k in hindsight, case by case.

    names: of the cases. relative: controller → one ratio for each case; 1 is no regret. Raises SpecdecError.
    """
    if not names or any(len(values) != len(names) for values in relative.values()):
        raise SpecdecError("names, relative: take one ratio for each case, at least one case")
    worst = {name: min(values) for name, values in relative.items()}
    winner = max(worst, key=lambda name: worst[name])
    percent = floor(100 * worst[winner] + 1e-9)  # down: it is a bound
    figure, axes = plotting.new_figure(
        f"The {winner} is never below {percent}% of hindsight",
        "speedup / that of the best fixed k", "", height=1.5 + 0.36 * len(names),
    )  # fmt: skip
    marks = zip(relative.items(), (("o", plotting.DRAFT), ("s", plotting.TARGET), ("^", plotting.BONUS)), strict=False)
    for i, ((name, values), (mark, color)) in enumerate(marks):
        rows = np.arange(len(names)) + 0.22 * (i - (len(relative) - 1) / 2)  # none hides another
        axes.plot(values, rows, mark, color=color, markeredgecolor="black", markersize=7, label=name)
    axes.axvline(1, color=plotting.FORMULA, linestyle="--", label="best fixed k")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=len(relative) + 1)
    return figure


@plotting.styled
def break_even_figure(batches: Sequence[int], least: Mapping[int, Sequence[float]], alpha: float) -> "Figure":
    """The α from which k drafted tokens pay, over the batch size, beside the pair's own.

    least: k → one α for each batch; inf, where even α = 1 does not pay, is drawn above 1. Raises SpecdecError.
    """
    if not batches or any(len(values) != len(batches) for values in least.values()):
        raise SpecdecError("batches, least: take one α for each batch size, at least one")
    figure, axes = plotting.new_figure(
        "Where a line is above the dashed one, that k loses", "batch size (sequences)", "break-even α", height=3.4
    )
    for (k, values), mark in zip(least.items(), "os^D", strict=False):
        axes.plot(batches, np.minimum(values, 1.05), f"{mark}-", color=plotting.DRAFT, label=f"k = {k}")
    axes.axhline(alpha, color=plotting.TARGET, linestyle="--", label=f"this pair's α, {alpha:.2f}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.set_ylim(0, 1.1)
    axes.legend(loc="lower right", ncols=2)
    return figure
