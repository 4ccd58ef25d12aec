"""The batch policy as a figure: where drafting pays, measured, for each batch size and context length."""

from typing import TYPE_CHECKING

from specdec_lab import plotting
from specdec_lab.measurement.policy import SpeculationPolicy
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat_map(policy: SpeculationPolicy, fixed: int | None = None) -> "Figure":
    """Measured speedup for each batch size and context: of `fixed` drafted tokens throughout, and of the policy.

    fixed: default the policy's k for the smallest batch. Hatched where speculating is slower than not.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    batches, contexts = policy.batches, policy.contexts
    first = policy.cell(batches[0], contexts[0]).k or max(policy.ks)
    k = first if fixed is None else fixed
    if k not in policy.ks:
        raise SpecdecError(f"fixed={fixed!r:.80}: takes one of the measured k, {', '.join(map(str, policy.ks))}")
    figure, axes = plotting.new_figure(
        "", "context (tokens)", width=max(6.8, 1.8 + 1.9 * len(contexts)), height=1.5 + 0.45 * len(batches), ncols=2,
        sharey=True,
    )  # fmt: skip
    shown = [{(b, n): policy.cell(b, n).measured[k] for b in batches for n in contexts},
             {(b, n): policy.cell(b, n).speedup for b in batches for n in contexts}]  # fmt: skip
    values = [value for panel in shown for value in panel.values()]
    low, high = min(*values, 0.5), max(*values, 1.5)
    colors = colormaps["cividis"]
    for axis, panel, name in zip(axes, shown, (f"always k = {k}", "the policy's k"), strict=True):
        axis.imshow([[panel[b, n] for n in contexts] for b in batches], cmap=colors, vmin=low, vmax=high, aspect="auto")
        for y, b in enumerate(batches):
            for x, n in enumerate(contexts):
                value = panel[b, n]
                words = f"{value:.2f}×" + (f"\nk = {policy.cell(b, n).k}" if axis is axes[1] else "")
                color = colors((value - low) / (high - low))
                ink = "black" if sum(color[:3]) > 1.4 else "white"
                ground = {"facecolor": color, "edgecolor": "none", "pad": 1.5}
                axis.text(x, y, words, ha="center", va="center", color=ink, fontsize=9, linespacing=1.0, bbox=ground)
                if value < 1:
                    corner = (x - 0.5, y - 0.5)
                    axis.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="//", edgecolor="white", linewidth=0))
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_xticks(range(len(contexts)), [str(n) for n in contexts])
        axis.grid(False)
    axes[0].set_yticks(range(len(batches)), [str(b) for b in batches])
    axes[0].set_ylabel("batch size (sequences)")
    bar = figure.colorbar(axes[1].images[0], ax=list(axes), shrink=0.9, pad=0.02)
    bar.set_label("measured speedup\n(times not speculating)")
    figure.suptitle(_reach(policy), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _reach(policy: SpeculationPolicy) -> str:
    """In words: up to which batch size the policy speculates at every context."""
    reach = 0
    for b in policy.batches:
        if not all(policy.cell(b, n).k for n in policy.contexts):
            break
        reach = b
    if reach == policy.batches[-1]:
        return f"Speculating pays at every batch size measured, up to {reach}"
    if reach:
        return f"Speculating pays up to a batch of {reach}; the policy stops where it does not"
    pays = sum(cell.k > 0 for cell in policy.cells)
    return f"Speculating pays in {pays} of {len(policy.cells)} cases of batch and context; the policy picks them"
