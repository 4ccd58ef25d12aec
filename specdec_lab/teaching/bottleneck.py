"""Lesson 01's explorer: the least time per token that a machine's memory allows."""

from typing import TYPE_CHECKING, Any

from specdec_lab import plotting
from specdec_lab.teaching.figures import as_png
from specdec_lab.teaching.widgets import show
from specdec_ref.errors import SpecdecError, is_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MACHINES = {
    "laptop, 2 × DDR5-5600": 89.6e9,
    "A100 80 GB SXM": 2.04e12,
    "H100 SXM": 3.35e12,
    "H200 SXM": 4.8e12,
}
"""Memory bandwidth in bytes/s, as the makers' data sheets state it."""

WIDTHS = {"float32": 4.0, "16 bit": 2.0, "8 bit": 1.0, "4 bit": 0.5}
"""Bytes per weight."""


def floor_seconds(parameters: float, width: float, bandwidth: float) -> float:
    """Parameters × bytes per weight / bandwidth: the least seconds of a token at batch 1. Raises SpecdecError."""
    for name, value in (("parameters", parameters), ("width", width), ("bandwidth", bandwidth)):
        if not is_number(value) or not value > 0:
            raise SpecdecError(f"{name}={value!r:.80}: takes a number > 0")
    return parameters * width / bandwidth


@plotting.styled
def floor_figure(parameters: float, width: float, here: float | None = None) -> "Figure":
    """The least milliseconds per token of such a model on each of `MACHINES`, and on this one.

    width: bytes per weight. here: this machine's own bandwidth in bytes/s, as `measure_limits` found it.
    """
    machines = MACHINES if here is None else {"this machine, measured": here} | MACHINES
    gigabytes = parameters * width / 1e9
    figure, axes = plotting.new_figure(
        f"{gigabytes:.1f} GB of weights, read once per token", "least time per token (ms, logarithmic)", height=2.9
    )
    times = [1e3 * floor_seconds(parameters, width, bandwidth) for bandwidth in machines.values()]
    at = range(len(machines))
    axes.barh(at, times, color=plotting.TARGET, height=0.6)
    for y, ms in zip(at, times, strict=True):
        axes.text(ms, y, f" {ms:,.1f} ms: at most {1e3 / ms:,.{int(ms > 100)}f} tokens/s", va="center")
    axes.set_yticks(at, list(machines))
    axes.invert_yaxis()
    axes.set_xscale("log")
    least = min(times) / 3
    axes.set_xlim(least, max(times) ** 2 / least)  # half for the longest bar, half for its words
    axes.grid(axis="y", visible=False)
    return figure


def floor_explorer(here: float | None = None) -> None:
    """Choose a model's size and the width of its weights; see the floor on several machines.

    here: this machine's own bandwidth in bytes/s.
    """
    import ipywidgets as w

    billions = w.SelectionSlider(options=[0.5, 1, 3, 7, 14, 32, 70], value=7, description="billions")
    width = w.Dropdown(options=list(WIDTHS), value="16 bit", description="weights")
    start = floor_figure(7e9, 2.0, here)
    image = w.Image(value=as_png(start), format="png", width=700)

    def redraw(_: Any) -> None:
        image.value = as_png(floor_figure(billions.value * 1e9, WIDTHS[width.value], here))

    for control in (billions, width):
        control.observe(redraw, names="value")
    show(w.VBox([w.HBox([billions, width]), image]), start)
