"""Pictures of the museum, in the course's style."""

from typing import TYPE_CHECKING

from specdec_lab.equivalence.museum import CAUGHT, INTENDED, MISSED, RIGHT, Matrix
from specdec_lab.plotting import ACCEPTED, FORMULA, REJECTED, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def museum_figure(result: Matrix) -> "Figure":
    """Wrong versions against tests: a filled square with a tick is caught, a dot is not; a frame marks the test meant.

    Public tests are on the right. A line separates what changes the distribution from what only loses speed.
    """
    from matplotlib.patches import Rectangle

    names = [*(m.name for m in result.mutants), RIGHT]
    figure, axes = new_figure(_message(result), width=8.0, height=1.2 + 0.235 * len(names))
    axes.grid(False)
    across = [i + 0.4 * check.public for i, check in enumerate(result.checks)]
    for y, row in enumerate(result.rows()):
        for x, mark in zip(across, row[1:], strict=True):
            if mark == MISSED:
                axes.text(x, y, MISSED, ha="center", va="center", color=FORMULA, fontsize=14)
                continue
            color = REJECTED if row[0] == RIGHT else ACCEPTED
            edge = "black" if mark == INTENDED else "white"
            axes.add_patch(Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, facecolor=color, edgecolor=edge, linewidth=1.6))
            axes.text(x, y, CAUGHT, ha="center", va="center", color="white", fontsize=9, fontweight="bold")
    kinds = [*(m.effect for m in result.mutants), RIGHT]
    for kind, message in (("distribution", "the text has the wrong distribution"), ("speed", "only speed is lost")):
        rows = [y for y, row_kind in enumerate(kinds) if row_kind == kind]
        if rows:
            middle, right = (rows[0] + rows[-1]) / 2, across[-1] + 0.6
            axes.text(right, middle, message, rotation=270, ha="left", va="center", color=FORMULA, fontsize=9)
            axes.axhline(rows[-1] + 0.5, color=FORMULA, linewidth=0.8)
    axes.set_xlim(-0.6, across[-1] + 0.6)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xticks(across, [check.heading for check in result.checks])
    axes.set_yticks(range(len(names)), names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel(f"{CAUGHT} caught (framed: by the test meant for it), {MISSED} not; * after a public test")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _message(result: Matrix) -> str:
    ours, theirs = ([c for c in result.checks if c.public is public] for public in (False, True))
    caught = sum(any(result.caught(m.name, c.name) for c in ours) for m in result.mutants)
    each = " and ".join(str(sum(result.caught(m.name, c.name) for m in result.mutants)) for c in theirs)
    message = f"Our tests catch {caught} of {len(result.mutants)} wrong versions"
    return f"{message},\nthe criteria of public tests {each}" if each else message
