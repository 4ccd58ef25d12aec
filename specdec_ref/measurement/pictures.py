"""The figures of the suite and of the batch policy, in the course's one style. matplotlib is imported when one is
drawn."""

import base64
import html
import io
from typing import TYPE_CHECKING, Any

from specdec_ref import plotting
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdec_ref.measurement.intervals import Interval
    from specdec_ref.measurement.policy import SpeculationPolicy
    from specdec_ref.measurement.results import SuiteResult

DASH = "–"


def embedded(figure: "Figure", alt: str) -> str:
    """The figure as an `img` element that holds its own SVG, on white also where the page is dark."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img alt="{html.escape(alt, quote=True)}" src="data:image/svg+xml;base64,{data}" '
        'style="max-width:100%;background:#fff;border-radius:6px">'
    )


def alt_text(figure: "Figure") -> str:
    """What the figure says: its titles and what its axes show."""
    parts = [figure.get_suptitle()]
    for axes in figure.axes:
        parts += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
    return ". ".join(dict.fromkeys(part.replace("\n", " ") for part in parts if part))


def reaches(interval: "Interval | None", figure: float) -> bool:
    """Whether the best one's figure lies in another's interval, so that this run does not tell them apart."""
    return interval is not None and interval[1] >= figure


def named(names: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def speedups(result: "SuiteResult") -> "Figure":
    """Speedup of decoding for every way and prompt length, with its interval, and what the formula says."""
    lengths = result.lengths
    names = [name for name in dict.fromkeys(r.config_name for r in result.results) if name != "baseline"]
    shown = [(r.decoding_speedup, r) for r in result.results if r.config_name != "baseline" and r.decoding_speedup]
    title = ""
    if shown:
        most, best = max(shown, key=lambda pair: pair[0])
        title = f"Fastest: {best.config_name}, {most:.2f} times the baseline on {best.prompt_length} prompts"
        beside = [r for _, r in shown if r is not best and r.prompt_length == best.prompt_length]
        if near := [r.config_name for r in beside if reaches(r.decoding_speedup_interval, most)]:
            title += f"\nwithin noise: {named(near)}"
    figure, axes = plotting.new_figure(
        "", "speedup after the first round\n(times the baseline)", width=2.4 + 2.2 * len(lengths),
        height=1.5 + 0.24 * len(names), ncols=len(lengths), sharey=True, squeeze=False,
    )  # fmt: skip
    for one, length in zip(axes.flat, lengths, strict=True):
        one.axvline(1, color=plotting.FORMULA, linewidth=1)
        found = {r.config_name: r for r in result.results if r.prompt_length == length}
        for y, name in enumerate(names):
            r = found.get(name)
            if r is None or r.decoding_speedup is None:
                continue
            if r.decoding_speedup_interval:
                one.plot(r.decoding_speedup_interval, (y, y), color=plotting.TARGET, linewidth=2.5, alpha=0.5)
            one.plot(r.decoding_speedup, y, "o", color=plotting.TARGET, label="measured, 95 % interval")
            if r.predicted_speedup is not None:
                one.plot(r.predicted_speedup, y, "|", color=plotting.FORMULA, markersize=12, markeredgewidth=2,
                         label="formula")  # fmt: skip
        tokens = next(r.prompt_tokens for r in result.results if r.prompt_length == length)
        one.set_title(f"{length}: {tokens} tokens", loc="left", fontsize=10)
        one.set_xlim(left=0)
    axes.flat[0].set_yticks(range(len(names)), names)
    axes.flat[0].set_ylim(len(names) - 0.5, -0.5)
    _finish(figure, title, axes.flat[0])
    return figure


def latencies(result: "SuiteResult") -> "Figure":
    """Latency of whole requests: median, 95th and 99th percentile for every way, by prompt length."""
    lengths = result.lengths
    names = list(dict.fromkeys(r.config_name for r in result.results))
    wide = max(result.results, key=lambda r: r.latency_p99 / r.latency_p50)
    times = f"{wide.latency_p99 / wide.latency_p50:.1f} times the median ({wide.config_name}, {wide.prompt_length})"
    enough = wide.latency_p99_interval is not None
    title = f"The slowest 1 % take {times}" if enough else f"p99 is {times}, but of {wide.samples} requests only"
    figure, axes = plotting.new_figure(
        "", "latency of a request (ms)", width=2.4 + 2.2 * len(lengths), height=1.5 + 0.24 * len(names),
        ncols=len(lengths), sharey=True, squeeze=False,
    )  # fmt: skip
    marks = (("p50", "o", plotting.TARGET), ("p95", "s", plotting.DRAFT), ("p99", "x", plotting.REJECTED))
    for one, length in zip(axes.flat, lengths, strict=True):
        found = {r.config_name: r for r in result.results if r.prompt_length == length}
        for y, name in enumerate(names):
            if (r := found.get(name)) is None:
                continue
            one.plot([r.latency_p50 * 1e3, r.latency_p99 * 1e3], [y, y], color=plotting.FORMULA, linewidth=1)
            for percentile, mark, colour in marks:
                label = f"{percentile}" if percentile != "p99" else f"p99 (of {r.samples} samples)"
                one.plot(getattr(r, f"latency_{percentile}") * 1e3, y, mark, color=colour, label=label)
        one.set_title(f"{length}: {next(iter(found.values())).prompt_tokens} tokens", loc="left", fontsize=10)
        one.set_xlim(left=0)
    axes.flat[0].set_yticks(range(len(names)), names)
    axes.flat[0].set_ylim(len(names) - 0.5, -0.5)
    _finish(figure, title, axes.flat[0])
    return figure


def heat_map(policy: "SpeculationPolicy", fixed: int | None = None) -> "Figure":
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
    colours = colormaps["cividis"]
    for one, panel, name in zip(axes, shown, (f"always k = {k}", "the policy's k"), strict=True):
        one.imshow([[panel[b, n] for n in contexts] for b in batches], cmap=colours, vmin=low, vmax=high, aspect="auto")
        for y, b in enumerate(batches):
            for x, n in enumerate(contexts):
                value = panel[b, n]
                words = f"{value:.2f}×" + (f"\nk = {policy.cell(b, n).k}" if one is axes[1] else "")
                colour = colours((value - low) / (high - low))
                ink = "black" if sum(colour[:3]) > 1.4 else "white"
                ground = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
                one.text(x, y, words, ha="center", va="center", color=ink, fontsize=9, linespacing=1.0, bbox=ground)
                if value < 1:
                    corner = (x - 0.5, y - 0.5)
                    one.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="//", edgecolor="white", linewidth=0))
        one.set_title(name, loc="left", fontsize=10)
        one.set_xticks(range(len(contexts)), [str(n) for n in contexts])
        one.grid(False)
    axes[0].set_yticks(range(len(batches)), [str(b) for b in batches])
    axes[0].set_ylabel("batch size (sequences)")
    bar = figure.colorbar(axes[1].images[0], ax=list(axes), shrink=0.9, pad=0.02)
    bar.set_label("measured speedup\n(times not speculating)")
    figure.suptitle(_reach(policy), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _reach(policy: "SpeculationPolicy") -> str:
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


def scoring_costs(policy: "SpeculationPolicy", context: int | None = None) -> "Figure":
    """v(k + 1) over the batch size at one context: what scoring costs once the weights are no longer the bottleneck."""
    from matplotlib import colormaps

    context = policy.contexts[len(policy.contexts) // 2] if context is None else context
    batches, ks = policy.batches, [k for k in policy.ks if k]
    cells = {b: policy.cell(b, context) for b in batches}
    most = max(ks)
    ends = cells[batches[0]].costs.v(most + 1), cells[batches[-1]].costs.v(most + 1)
    figure, axes = plotting.new_figure(
        f"Scoring {most + 1} tokens costs {ends[0]:.1f} target steps at batch {batches[0]}, "
        f"{ends[1]:.1f} at batch {batches[-1]}",
        f"batch size (sequences), each of {context} tokens",
        "v(k + 1) (target steps)",
    )
    for i, k in enumerate(ks):
        shade, mark = colormaps["cividis"](0.85 * i / len(ks)), "os^Dvx*+"[i % 8]
        axes.plot(batches, [cells[b].costs.v(k + 1) for b in batches], color=shade, marker=mark, label=f"k = {k}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.set_ylim(bottom=0)
    axes.axhline(1, color=plotting.FORMULA, linestyle="--", linewidth=1)
    axes.annotate("as costly as one token", (batches[0], 1), xytext=(0, -12), textcoords="offset points",
                  color=plotting.FORMULA, fontsize=9)  # fmt: skip
    axes.legend(ncols=2, frameon=False)
    return figure


def _finish(figure: "Figure", title: str, axes: Any) -> None:
    """Title and one legend over all panels."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=len(once), frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
