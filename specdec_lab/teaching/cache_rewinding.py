"""A picture of rewinding a KV cache: the slots of one sequence, round after round."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from specdec_lab import plotting
from specdec_lab.teaching.replay import PlayedRound
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD = "#DDDDDD"
MOST_SLOTS = 32


@plotting.styled
def cache_figure(
    rounds: Sequence[PlayedRound], decode: Callable[[int], str] | None = None, last: int | None = None
) -> "Figure":
    """The target's cache in each round, one line per round.

    Args:
        rounds: as `replay` returns them, from the first on. The figure shows those that fit into 32 slots.
        decode: token id → text, written into the cells.
        last: the prompt's last token, which the first round reads; slot 0 holds it.

    Raises:
        SpecdecError: where there are no rounds.
    """
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import MaxNLocator

    if not rounds:
        raise SpecdecError("rounds: is empty; takes what replay() returned")
    starts = [0]
    for played in rounds:
        starts.append(starts[-1] + played.accepted + 1)
    shown = [i for i, played in enumerate(rounds) if starts[i] + len(played.drafted) + 2 <= MOST_SLOTS]
    width = max(starts[i] + len(rounds[i].drafted) + 2 for i in shown)
    letters = 4 if width <= 20 else 3  # as many as fit into a slot
    rejected = sum(len(rounds[i].drafted) - rounds[i].accepted for i in shown)
    figure, axes = plotting.new_figure(
        f"Rewinding only changes the length: {rejected} slots are cut off, none is erased",
        "cache slot (0 is the last token of the prompt)",
        "round",
        width=8.6,
        height=1.3 + 0.42 * len(shown),
    )

    def cell(x: int, y: int, face: str, edge: str, text: str, hatch: str = "") -> None:
        axes.add_patch(Rectangle((x, y - 0.36), 0.94, 0.72, facecolor=face, edgecolor=edge, hatch=hatch))
        box = {"facecolor": face, "edgecolor": "none", "pad": 0.8}
        axes.text(x + 0.47, y, text, ha="center", va="center", fontsize=9, bbox=box if hatch else None)

    for y, i in enumerate(shown):
        played, start = rounds[i], starts[i]
        for x in range(start):
            cell(x, y, HELD, "white", "")
        before = rounds[i - 1].next_token if i else last
        cell(start, y, "white", "black", "" if decode is None or before is None else _short(decode(before), letters))
        for j, token in enumerate(played.drafted):
            accepted = j < played.accepted
            mark = plotting.ACCEPTED_MARK if accepted else plotting.REJECTED_MARK
            word = mark if decode is None else _short(decode(token), letters)
            face, edge = (plotting.ACCEPTED, "white") if accepted else ("white", plotting.REJECTED)
            cell(start + 1 + j, y, face, edge, word, "" if accepted else "///")
        axes.plot([starts[i + 1]] * 2, [y - 0.46, y + 0.46], color="black", linewidth=2.4)
    legend = [
        Patch(facecolor=HELD, label="in the cache before"),
        Patch(facecolor="white", edgecolor="black", label="added by the previous round"),
        Patch(facecolor=plotting.ACCEPTED, label="accepted"),
        Patch(facecolor="white", edgecolor=plotting.REJECTED, hatch="///", label="rejected, overwritten next"),
    ]
    axes.set_xlim(0, width)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(range(len(shown)), [str(rounds[i].number) for i in shown])
    axes.grid(False)
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _short(text: str, letters: int) -> str:
    text = text.strip(" ").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")
    return (text if len(text) <= letters else text[: letters - 1] + "…") or "␣"
