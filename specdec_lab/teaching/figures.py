"""Figures of the lessons that explorers redraw too: p, q and what becomes of them; one round, token by token."""

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
    """p and q side by side; where the draft's tokens go: kept, or rejected and replaced from the residual.

    p, q: one distribution each, over the same tokens. names: of the tokens. Raises SpecdecError.
    """
    target, draft = (torch.tensor(list(x), dtype=torch.float64) for x in (p, q))
    if target.ndim != 1 or target.shape != draft.shape or not len(target):
        raise SpecdecError(f"p, q: have {len(target)} and {len(draft)} entries; take two distributions of one size")
    if not all(abs(float(x.sum()) - 1) < 1e-6 and bool((x >= 0).all()) for x in (target, draft)):
        raise SpecdecError("p, q: take two distributions, each ≥ 0 and with sum 1")
    alpha = float(acceptance_rate(target, draft))
    kept = torch.minimum(target, draft)
    left = (1 - alpha) * residual(target, draft)
    at = np.arange(len(target))
    labels = list(names) if names else [str(i) for i in at]
    figure, (one, two) = plotting.new_figure("", "token", "probability", width=8.6, height=3.5, ncols=2, sharey=True)
    one.bar(at - 0.2, target, 0.38, color=plotting.TARGET, label="target p")
    one.bar(at + 0.2, draft, 0.38, color=plotting.DRAFT, label="draft q", hatch="//", edgecolor="white")
    one.set_title("What each model would say")
    two.bar(at, kept, 0.6, color=plotting.ACCEPTED, label="kept: min(p, q)")
    two.bar(
        at, left, 0.6, bottom=kept, color="white", edgecolor=plotting.REJECTED, hatch="xxx",
        label="rejected → residual",
    )  # fmt: skip
    for i, height in enumerate(target.tolist()):
        two.plot([i - 0.38, i + 0.38], [height] * 2, color=plotting.TARGET, linewidth=2.2, label="" if i else "p")
    two.set_title(f"α = {alpha:.2f} is kept, and the sum is p again")
    two.set_ylabel("")
    for axes in (one, two):
        axes.set_xticks(at, labels)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right")
    one.set_ylim(0, max(0.6, float(torch.maximum(target, draft).max())) * 1.35)
    return figure


@plotting.styled
def round_figure(played: "PlayedRound", decode: Any, most: int = 5) -> "Figure":
    """One round: u against min(1, p/q) and the verdict, token by token; then what the last token was drawn from.

    decode: token id → text. most: candidates shown for the last token, likeliest first; the one drawn is always there.
    """
    n, full = len(played.drafted), played.accepted == len(played.drafted)
    figure, (one, two) = plotting.new_figure(
        f"Round {played.number}: {played.accepted} of {n} kept",
        width=8.6,
        height=3.4,
        ncols=2,
        gridspec_kw={"width_ratios": [n + 1, 3]},
    )
    for i in range(n):
        judged, kept = i <= played.accepted, i < played.accepted
        color = plotting.ACCEPTED if kept else plotting.REJECTED if judged else "#BBBBBB"
        one.bar(i, played.chances[i], 0.55, color=color, alpha=0.85 if judged else 0.4)
        one.plot([i - 0.36, i + 0.36], [played.u[i]] * 2, color="black", linewidth=2, alpha=1 if judged else 0.25)
        mark = plotting.ACCEPTED_MARK if kept else plotting.REJECTED_MARK if judged else "not judged"
        size = 13 if judged else 9
        one.text(i, 1.05, mark, ha="center", va="bottom", color=color if judged else "#666666", fontsize=size)
    one.plot([], [], color="black", linewidth=2, label="u")
    words = [f"{_show(decode(token))}\nq = {q:.2g}" for token, q in zip(played.drafted, played.q, strict=True)]
    one.set_xticks(range(n), words)
    one.set_xlim(-0.6, n - 0.4)
    one.set_ylim(0, 1.25)
    one.set_yticks([0, 0.25, 0.5, 0.75, 1])
    one.set_ylabel("min(1, p/q), the chance to be kept")
    one.grid(axis="x", visible=False)
    one.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.03), handlelength=1.2)

    likeliest = played.next_from.argsort(descending=True)[:most].tolist()
    if played.next_token not in likeliest:
        likeliest[-1] = played.next_token
    color = plotting.BONUS if full else plotting.REJECTED
    for y, token in enumerate(likeliest):
        chance, drawn = float(played.next_from[token]), token == played.next_token
        look = {"color": color} if full else {"color": "white", "edgecolor": color, "hatch": "xxx"}
        two.barh(y, chance, 0.6, **look)
        two.text(chance, y, "  ← drawn" if drawn else "", va="center", fontsize=9)
    two.set_yticks(range(len(likeliest)), [_show(decode(token)) for token in likeliest])
    two.invert_yaxis()
    two.set_xlim(0, 1.35 * float(played.next_from.max()))
    two.set_xlabel("probability, by the target" if full else "probability, in the residual")
    two.grid(axis="y", visible=False)
    source = f"{plotting.BONUS_MARK} bonus token" if full else "From the residual"
    two.set_title(f"{source}: {_show(decode(played.next_token))}")
    return figure


def _show(text: str) -> str:
    return "'" + text.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$") + "'"
