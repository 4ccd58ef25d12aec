"""Figures of lesson 07: controllers compared with the best fixed k, speedup by batch size, break-even α, decisions."""

from collections.abc import Mapping, Sequence
from math import floor
from typing import TYPE_CHECKING

import numpy as np

from specdec_lab import plotting
from specdec_lab.measurement.policy import SpeculationPolicy
from specdec_ref.errors import SpecdecError
from specdec_ref.theory import expected_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@plotting.styled
def set_point_figure(low: float = 0.6, high: float = 0.8, ks: Sequence[int] = (1, 2, 4, 8)) -> "Figure":
    """Accepted / drafted against α for each k: (α + … + αᵏ)/k. Between `low` and `high` the heuristic keeps k."""
    alphas = np.linspace(0.5, 0.99, 60)
    figure, axes = plotting.new_figure(
        "One α, many 'acceptance rates': the ratio falls as k grows", "acceptance rate α", "accepted / drafted"
    )
    axes.axhspan(low, high, color=plotting.DRAFT, alpha=0.2, linewidth=0, label="the heuristic keeps k")
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
    """Speedup of each controller divided by that of the best fixed k, case by case.

    Args:
        names: of the cases.
        relative: controller → one ratio for each case; 1 is no regret.

    Raises:
        SpecdecError: the lengths differ, or there is no case.
    """
    if not names or any(len(values) != len(names) for values in relative.values()):
        raise SpecdecError("names, relative: take one ratio for each case, at least one case")
    worst = {name: min(values) for name, values in relative.items()}
    winner = max(worst, key=lambda name: worst[name])
    percent = floor(100 * worst[winner] + 1e-9)  # down: it is a bound
    figure, axes = plotting.new_figure(
        f"The {winner} reaches at least {percent} % of the best fixed k",
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
def break_even_figure(batches: Sequence[int], break_even: Mapping[int, Sequence[float]], alpha: float) -> "Figure":
    """The break-even α of each k over the batch size, with the pair's own α as a dashed line.

    Args:
        batches: batch sizes.
        break_even: k → one break-even α per batch size. Infinity, where even α = 1 does not pay, is shown above 1.
        alpha: the pair's acceptance rate.

    Raises:
        SpecdecError: the lengths differ, or there is no batch size.
    """
    if not batches or any(len(values) != len(batches) for values in break_even.values()):
        raise SpecdecError("batches, break_even: take one α for each batch size, at least one")
    figure, axes = plotting.new_figure(
        "Where a line lies above the dashed one, that k loses", "batch size (sequences)", "break-even α", height=3.4
    )
    for (k, values), look in zip(break_even.items(), ("o-", "s:", "^-.", "D-"), strict=False):
        axes.plot(batches, np.minimum(values, 1.05), look, color=plotting.DRAFT, label=f"k = {k}")
    axes.axhline(alpha, color=plotting.TARGET, linestyle="--", label=f"this pair's α, {alpha:.2f}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.set_ylim(0, 1.1)
    axes.legend(loc="lower right", ncols=2)
    return figure


@plotting.styled
def batch_figure(policy: SpeculationPolicy, context: int) -> "Figure":
    """The measured speedup of each k over the batch size, at one context length.

    Points below 1 are marked with a cross: there, drafting k tokens is slower than not drafting. Raises SpecdecError
    for a context length that was not measured.
    """
    ks = [k for k in policy.ks if k]
    curves = {k: [policy.cell(batch, context).measured[k] for batch in policy.batches] for k in ks}
    figure, axes = plotting.new_figure(_losses(policy.batches, curves), "batch size (sequences)", "measured speedup")
    axes.axhline(1, color=plotting.FORMULA, linestyle="--")
    axes.annotate(
        "no speculation", (policy.batches[0], 1), xytext=(0, -4), textcoords="offset points", va="top", fontsize=9
    )
    for (k, values), mark, style in zip(curves.items(), "os^Dv<>", ("-", "--", "-.", ":") * 2, strict=False):
        axes.plot(policy.batches, values, style, marker=mark, color=plotting.TARGET, label=f"k = {k}")
        slower = [(batch, value) for batch, value in zip(policy.batches, values, strict=True) if value < 1]
        if slower:
            axes.plot(*zip(*slower, strict=True), "x", color=plotting.REJECTED, markersize=13, markeredgewidth=2.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(policy.batches, [str(batch) for batch in policy.batches])
    axes.set_ylim(0, None)
    axes.legend(loc="lower left", ncols=len(ks))
    return figure


def _losses(batches: Sequence[int], curves: Mapping[int, Sequence[float]]) -> str:
    """In words: which k is slower than no speculation, and at which batch sizes."""
    sentences = []
    for k, values in curves.items():
        slower = [str(batch) for batch, value in zip(batches, values, strict=True) if value < 1]
        if slower:
            sentences.append(f"k = {k} loses at batch {' and '.join(slower)}" if len(slower) < 3 else
                         f"k = {k} loses at {len(slower)} of {len(batches)} batch sizes")  # fmt: skip
    return "; ".join(sentences) or "Every k gains at every batch size measured"


@plotting.styled
def judged_figure(rows: Sequence[tuple[str, float, float, float]], title: str) -> "Figure":
    """The measured speedup of each decision, row by row.

    Args:
        rows: (case, tree, rule of thumb, best in hindsight).
        title: the message.

    Raises:
        SpecdecError: there is no row.
    """
    if not rows:
        raise SpecdecError("rows: is empty; takes (case, tree, rule of thumb, best)")
    names, tree, rule, best = zip(*rows, strict=True)
    figure, axes = plotting.new_figure(title, "measured speedup", "", height=1.5 + 0.45 * len(rows))
    at = np.arange(len(rows))
    axes.axvline(1, color=plotting.FORMULA, linewidth=1)
    axes.plot(best, at, "|", color="black", markersize=22, markeredgewidth=2, label="best in hindsight")
    axes.plot(tree, at - 0.17, "o", color=plotting.TARGET, markersize=8, label="the tree")
    axes.plot(rule, at + 0.17, "s", color=plotting.DRAFT, markersize=8, label="rule of thumb")
    axes.set_yticks(at, names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, markerscale=0.7)
    return figure
