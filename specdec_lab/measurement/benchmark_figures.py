"""The figures of the benchmark suite, in the style of the course. matplotlib is imported when a figure is drawn."""

import base64
import html
import io
from typing import TYPE_CHECKING, Any

from specdec_lab import plotting
from specdec_lab.measurement.results import first_names, reaches
from specdec_lab.measurement.suite_result import SuiteResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def embedded(figure: "Figure", alt: str) -> str:
    """The figure as an `img` element with an inline SVG, on white even if the page is dark."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img alt="{html.escape(alt, quote=True)}" src="data:image/svg+xml;base64,{data}" '
        'style="max-width:100%;background:#fff;border-radius:6px">'
    )


def alt_text(figure: "Figure") -> str:
    """A text alternative for the figure: its titles and the labels of its axes."""
    parts = [figure.get_suptitle()]
    for axes in figure.axes:
        parts += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
    return ". ".join(dict.fromkeys(part.replace("\n", " ") for part in parts if part))


def speedups(result: SuiteResult) -> "Figure":
    """The decoding speedup of every way and prompt length, with its interval and the formula's prediction."""
    lengths = result.lengths
    names = [name for name in dict.fromkeys(r.config_name for r in result.results) if name != "baseline"]
    shown = [(r.decoding_speedup, r) for r in result.results if r.config_name != "baseline" and r.decoding_speedup]
    title = ""
    if shown:
        fastest, best = max(shown, key=lambda pair: pair[0])
        title = f"Fastest: {best.config_name}, {fastest:.2f} times the baseline on {best.prompt_length} prompts"
        same_length = [r for _, r in shown if r is not best and r.prompt_length == best.prompt_length]
        if near := [r.config_name for r in same_length if reaches(r.decoding_speedup_interval, fastest)]:
            title += f"\nwithin noise: {first_names(near)}"
    label = "speedup after the first round (times the baseline)"
    if len(lengths) > 1:
        label = label.replace(" (", "\n(")
    figure, axes = plotting.new_figure(
        "", label, width=max(7.4, 2.4 + 2.2 * len(lengths)),
        height=1.5 + 0.24 * len(names), ncols=len(lengths), sharey=True, squeeze=False,
    )  # fmt: skip
    for panel, length in zip(axes.flat, lengths, strict=True):
        panel.axvline(1, color=plotting.FORMULA, linewidth=1)
        by_name = {r.config_name: r for r in result.results if r.prompt_length == length}
        for y, name in enumerate(names):
            r = by_name.get(name)
            if r is None or r.decoding_speedup is None:
                continue
            if r.decoding_speedup_interval:
                panel.plot(r.decoding_speedup_interval, (y, y), color=plotting.TARGET, linewidth=2.5, alpha=0.5)
            panel.plot(r.decoding_speedup, y, "o", color=plotting.TARGET, label="measured, 95 % interval")
            if r.predicted_speedup is not None:
                panel.plot(r.predicted_speedup, y, "|", color=plotting.FORMULA, markersize=12, markeredgewidth=2,
                         label="formula")  # fmt: skip
        tokens = next(r.prompt_tokens for r in result.results if r.prompt_length == length)
        panel.set_title(f"{length}: {tokens} tokens", loc="left", fontsize=10)
        panel.set_xlim(left=0)
    axes.flat[0].set_yticks(range(len(names)), names)
    axes.flat[0].set_ylim(len(names) - 0.5, -0.5)
    _finish(figure, title, axes.flat[0])
    return figure


def _finish(figure: "Figure", title: str, axes: Any) -> None:
    """Title and one legend over all panels."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=len(once), frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
