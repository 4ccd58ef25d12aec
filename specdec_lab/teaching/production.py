"""Lesson 09's figures: contenders by pace, decisions beside what was measured; and sliders for any figure."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab import plotting
from specdec_lab.teaching.figures import as_png
from specdec_lab.teaching.widgets import show
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@plotting.styled
def pace_figure(speeds: Mapping[str, Mapping[str, Mapping[int, float]]], batch: int, title: str) -> "Figure":
    """Tokens per second of each contender, at one number of requests at once. speeds: name → mode → batch → tokens/s.

    A contender without a figure for that batch has no bar. Raises SpecdecError where none has one.
    """
    names = list(speeds)
    modes = list(dict.fromkeys(mode for one in speeds.values() for mode in one))
    looks: list[dict[str, Any]] = [{"color": plotting.TARGET}, {"color": plotting.DRAFT, "hatch": "//"}]
    if not any(batch in one.get(mode, {}) for one in speeds.values() for mode in modes):
        raise SpecdecError(f"batch={batch!r:.40}: nobody was measured there")
    figure, axes = plotting.new_figure(title, "tokens per second", "", width=7.6, height=1.2 + 0.46 * len(names))
    height = 0.8 / len(modes)
    most = max(one.get(mode, {}).get(batch, 0.0) for one in speeds.values() for mode in modes)
    for i, mode in enumerate(modes):
        at = np.arange(len(names)) + (i - (len(modes) - 1) / 2) * height
        paces = [speeds[name].get(mode, {}).get(batch, np.nan) for name in names]
        axes.barh(at, paces, height * 0.94, label=mode, edgecolor="white", **looks[i % len(looks)])
        for y, pace in zip(at, paces, strict=True):
            if not np.isnan(pace):
                axes.text(pace + most / 100, y, f"{pace:.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.12)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=len(modes), frameon=False)
    return figure


@plotting.styled
def judged_figure(rows: Sequence[tuple[str, float, float, float]], title: str) -> "Figure":
    """Case by case, the measured speedup of what was decided. rows: (case, tree, rule of thumb, best in hindsight).

    Raises SpecdecError where there are none.
    """
    if not rows:
        raise SpecdecError("rows: is empty; takes (case, tree, rule of thumb, best)")
    names, tree, rule, best = zip(*rows, strict=True)
    figure, axes = plotting.new_figure(title, "measured speedup", "", width=7.6, height=1.4 + 0.27 * len(rows))
    at = np.arange(len(rows))
    axes.axvline(1, color=plotting.FORMULA, linewidth=1)
    axes.plot(best, at, "|", color="black", markersize=13, markeredgewidth=2, label="best in hindsight")
    axes.plot(rule, at, "s", color=plotting.DRAFT, markersize=9, label="rule of thumb")
    axes.plot(tree, at, "o", color=plotting.TARGET, markersize=6, label="the tree")
    axes.set_yticks(at, names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def explorer(draw: "Callable[..., Figure]", **controls: Sequence[Any]) -> None:
    """`draw` with a slider for each argument: the values it takes, the first of them to begin with.

    Raises SpecdecError for a control without values.
    """
    import ipywidgets as w

    if not controls or not all(len(values) for values in controls.values()):
        raise SpecdecError("controls: take at least one, each with the values that it may have")
    sliders = {
        name: w.SelectionSlider(
            options=sorted(values), value=values[0], description=name.replace("_", " "), continuous_update=False
        )
        for name, values in controls.items()
    }
    start = draw(**{name: slider.value for name, slider in sliders.items()})
    image = w.Image(value=as_png(start), format="png", width=int(start.get_figwidth() * 100))

    def redraw(_: Any) -> None:
        image.value = as_png(draw(**{name: slider.value for name, slider in sliders.items()}))

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    show(w.VBox([w.HBox(list(sliders.values())), image]), start)
