"""Figures of the lessons and their explorers: the two parts of the output for p and q, and one round in detail."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from specdec_lab import plotting
from specdec_ref.acceptance import acceptance_rate, residual
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdec_lab.teaching.replay import PlayedRound


def as_png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


@plotting.styled
def acceptance_figure(p: Sequence[float], q: Sequence[float], names: Sequence[str] | None = None) -> "Figure":
    """Left: p and q. Right: the accepted part and the residual part of the output, which add up to p.

    Args:
        p, q: one distribution each, over the same tokens.
        names: labels of the tokens; default their numbers.

    Raises:
        SpecdecError: p or q is not a distribution, or their sizes differ.
    """
    target, draft = (torch.tensor(list(x), dtype=torch.float64) for x in (p, q))
    if target.ndim != 1 or target.shape != draft.shape or not len(target):
        raise SpecdecError(f"p, q: have {len(target)} and {len(draft)} entries; take two distributions of one size")
    if not all(abs(float(x.sum()) - 1) < 1e-6 and bool((x >= 0).all()) for x in (target, draft)):
        raise SpecdecError("p, q: take two distributions, each ≥ 0 and with sum 1")
    alpha = float(acceptance_rate(target, draft))
    accepted = torch.minimum(target, draft)
    added = (1 - alpha) * residual(target, draft)
    at = np.arange(len(target))
    labels = list(names) if names else [str(i) for i in at]
    figure, (left, right) = plotting.new_figure("", "token", "probability", width=8.6, height=3.5, ncols=2, sharey=True)
    left.bar(at - 0.2, target, 0.38, color=plotting.TARGET, label="target p")
    left.bar(at + 0.2, draft, 0.38, color=plotting.DRAFT, label="draft q", hatch="//", edgecolor="white")
    left.set_title("Target and draft disagree …")
    right.bar(at, accepted, 0.6, color=plotting.ACCEPTED, label="accepted: min(p, q)")
    right.bar(
        at, added, 0.6, bottom=accepted, color="white", edgecolor=plotting.REJECTED, hatch="xxx",
        label="rejected, then sampled from the residual",
    )  # fmt: skip
    for i, height in enumerate(target.tolist()):
        right.plot([i - 0.38, i + 0.38], [height] * 2, color=plotting.TARGET, linewidth=2.2, label="" if i else "p")
    right.set_title(f"… yet both parts add up to p (α = {alpha:.2f})")
    right.set_ylabel("")
    for axes in (left, right):
        axes.set_xticks(at, labels)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right")
    left.set_ylim(0, max(0.6, float(torch.maximum(target, draft).max())) * 1.35)
    return figure


@plotting.styled
def round_figure(played: "PlayedRound", decode: Any, num_shown: int = 5) -> "Figure":
    """Left: u against min(1, p/q) for each drafted token. Right: the distribution of the round's last token.

    Args:
        played: the round.
        decode: token id → text.
        most: candidates shown on the right, most likely first. The sampled one is always among them.
    """
    n, full = len(played.drafted), played.accepted == len(played.drafted)
    figure, (left, right) = plotting.new_figure(
        f"Round {played.number}: {played.accepted} of {n} accepted",
        width=8.6,
        height=3.4,
        ncols=2,
        gridspec_kw={"width_ratios": [n + 1, 3]},
    )
    for i in range(n):
        examined, accepted = i <= played.accepted, i < played.accepted
        color = plotting.ACCEPTED if accepted else plotting.REJECTED if examined else "#BBBBBB"
        left.bar(i, played.chances[i], 0.55, color=color, alpha=0.85 if examined else 0.4)
        left.plot([i - 0.36, i + 0.36], [played.u[i]] * 2, color="black", linewidth=2, alpha=1 if examined else 0.25)
        mark = plotting.ACCEPTED_MARK if accepted else plotting.REJECTED_MARK if examined else "not examined"
        size = 13 if examined else 9
        left.text(i, 1.05, mark, ha="center", va="bottom", color=color if examined else "#666666", fontsize=size)
    left.plot([], [], color="black", linewidth=2, label="u")
    words = [f"{_show(decode(token))}\nq = {q:.2g}" for token, q in zip(played.drafted, played.q, strict=True)]
    left.set_xticks(range(n), words)
    left.set_xlim(-0.6, n - 0.4)
    left.set_ylim(0, 1.25)
    left.set_yticks([0, 0.25, 0.5, 0.75, 1])
    left.set_ylabel("acceptance probability, min(1, p/q)")
    left.grid(axis="x", visible=False)
    left.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.03), handlelength=1.2)

    shown = played.next_from.argsort(descending=True)[:num_shown].tolist()
    if played.next_token not in shown:
        shown[-1] = played.next_token
    color = plotting.BONUS if full else plotting.REJECTED
    for y, token in enumerate(shown):
        probability = float(played.next_from[token])
        look = {"color": color} if full else {"color": "white", "edgecolor": color, "hatch": "xxx"}
        right.barh(y, probability, 0.6, **look)
        right.text(probability, y, "  ← sampled" if token == played.next_token else "", va="center", fontsize=9)
    right.set_yticks(range(len(shown)), [_show(decode(token)) for token in shown])
    right.invert_yaxis()
    right.set_xlim(0, 1.35 * float(played.next_from.max()))
    right.set_xlabel("probability (target)" if full else "probability (residual)")
    right.grid(axis="y", visible=False)
    source = f"{plotting.BONUS_MARK} bonus token" if full else "From the residual"
    right.set_title(f"{source}: {_show(decode(played.next_token))}")
    return figure


def _show(text: str) -> str:
    return "'" + text.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$") + "'"
