"""Figures of the lessons that explorers redraw too: p, q and what becomes of them; one round, token by token."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from specdec_ref import plotting
from specdec_ref.acceptance import acceptance_rate, residual
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdec_ref.teaching.replay import PlayedRound


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
def round_figure(played: "PlayedRound", decode: Any) -> "Figure":
    """One round, token by token: u against min(1, p/q), and the verdict. decode: token id → text."""
    n = len(played.drafted)
    figure, axes = plotting.new_figure("", "", "chance of being kept", width=8.6, height=3.4)
    for i in range(n):
        judged = i <= played.accepted
        kept = i < played.accepted
        colour = plotting.ACCEPTED if kept else plotting.REJECTED if judged else "#BBBBBB"
        axes.bar(i, played.chances[i], 0.55, color=colour, alpha=0.85 if judged else 0.4)
        axes.plot([i - 0.36, i + 0.36], [played.u[i]] * 2, color="black", linewidth=2, alpha=1 if judged else 0.25)
        mark = plotting.ACCEPTED_MARK if kept else plotting.REJECTED_MARK if judged else "not judged"
        axes.text(i, 1.04, mark, ha="center", va="bottom", color=colour if judged else "#777777", fontsize=11)
    full = played.accepted == n
    face, edge = (plotting.BONUS, plotting.BONUS) if full else ("white", plotting.REJECTED)
    axes.bar(n, 1, 0.55, color=face, edgecolor=edge, hatch="" if full else "xxx", alpha=0.6)
    words = [f"{_show(decode(token))}\nq = {q:.2f}" for token, q in zip(played.drafted, played.q, strict=True)]
    last = f"{plotting.BONUS_MARK} bonus" if full else "residual"
    axes.set_xticks(range(n + 1), [*words, f"{last}:\n{_show(decode(played.next_token))}"])
    axes.set_ylim(0, 1.22)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", visible=False)
    emitted = played.accepted + 1
    axes.set_title(
        f"Round {played.number}: {played.accepted} of {n} kept, {emitted} token{'s' if emitted > 1 else ''} emitted "
        "(bar: min(1, p/q); black line: u)"
    )
    return figure


def _show(text: str) -> str:
    return "'" + text.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$") + "'"
