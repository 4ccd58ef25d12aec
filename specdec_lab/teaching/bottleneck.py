"""Lesson 01: where the time of a step goes, and the explorer of the highest speed that memory allows."""

from collections.abc import Callable, Iterator
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

BILLIONS = {"0.5": 0.5, "1": 1.0, "3": 3.0, "6.74 (Llama-2-7B)": 6.74, "14": 14.0, "32": 32.0, "70": 70.0}
"""Sizes of models that the explorer offers, in billions of parameters."""

WORK = {
    "matrix products": ("linear", "matmul", "mm", "addmm", "bmm"),
    "attention": ("scaled_dot_product",),
    "KV cache": ("index_copy", "index_put"),
}
"""Kinds of work in a step, by how the names of their operators begin."""
SMALL, BETWEEN = "small operators (norms, sums, …)", "between operators (Python, profiler)"


def profile_steps(step: Callable[[], object], times: int = 20) -> tuple[dict[str, float], float]:
    """Profile a step on the CPU.

    Only outermost operators count, since the time of an operator includes the operators that it calls.

    Args:
        step: makes one step.
        times: how often it is called, once as a warm-up and once more under the profiler.

    Returns:
        Each kind of work and its share of the time (they sum to 1), and the operators started per step.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    for _ in range(times):  # warm-up: the package records a step that comes often
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(times):
            with record_function("step"):
                step()
    steps = [event for event in profiler.events() or [] if event.name == "step"]
    operators = [event for whole in steps for event in _outermost_operators(whole)]
    total = sum(whole.cpu_time_total for whole in steps)
    time_of = dict.fromkeys([*WORK, SMALL], 0.0)
    for operator in operators:
        time_of[_kind_of(operator.name)] += operator.cpu_time_total
    time_of[BETWEEN] = total - sum(time_of.values())
    return {kind: time / total for kind, time in time_of.items()}, len(operators) / times


def _outermost_operators(event: Any) -> Iterator[Any]:
    """Operators have '::' in their name; what has not, calls them."""
    for child in event.cpu_children:
        if "::" in child.name:
            yield child
        else:
            yield from _outermost_operators(child)


def _kind_of(operator: str) -> str:
    name = operator.split("::")[-1].lstrip("_")
    return next((kind for kind, begins in WORK.items() if name.startswith(begins)), SMALL)


def floor_seconds(parameters: float, width: float, bandwidth: float) -> float:
    """The shortest time of a step over one token at batch 1: weights in bytes / bandwidth.

    Args:
        parameters: how many.
        width: bytes per weight.
        bandwidth: bytes/s.

    Returns:
        Seconds.

    Raises:
        SpecdecError: an argument is not above 0.
    """
    for name, value in (("parameters", parameters), ("width", width), ("bandwidth", bandwidth)):
        if not is_number(value) or not value > 0:
            raise SpecdecError(f"{name}={value!r:.80}: takes a number > 0")
    return parameters * width / bandwidth


@plotting.styled
def floor_figure(parameters: float, width: float, here: float | None = None) -> "Figure":
    """The most tokens per second that the memory of each of `MACHINES` allows, one token per step.

    Args:
        parameters: of the model.
        width: bytes per weight.
        here: this machine's own bandwidth in bytes/s, as `measure_limits` measures it.
    """
    machines = MACHINES if here is None else {"this machine, measured": here} | MACHINES
    gigabytes = parameters * width / 1e9
    figure, axes = plotting.new_figure(
        f"Reading {gigabytes:.1f} GB of weights per token limits the speed", "tokens per second, at most", height=2.9
    )
    times = [floor_seconds(parameters, width, bandwidth) for bandwidth in machines.values()]
    at = range(len(machines))
    axes.barh(at, [1 / seconds for seconds in times], color=plotting.TARGET, height=0.6)
    for y, seconds in zip(at, times, strict=True):
        rate = 1 / seconds
        words = f" {rate:,.{int(rate < 100)}f} tokens/s: {1e3 * seconds:,.1f} ms each"
        axes.text(rate, y, words, va="center", fontsize=9)
    axes.set_yticks(at, list(machines))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 / min(times))
    axes.grid(axis="y", visible=False)
    return figure


def floor_explorer(here: float | None = None) -> None:
    """Choose a model's size and the width of its weights; see the highest speed on several machines.

    Args:
        here: this machine's own bandwidth in bytes/s.
    """
    import ipywidgets as w

    billions = w.SelectionSlider(options=list(BILLIONS.items()), value=6.74, description="billions")
    width = w.Dropdown(options=list(WIDTHS), value="16 bit", description="weights")
    start = floor_figure(6.74e9, 2.0, here)
    image = w.Image(value=as_png(start), format="png", width=700)

    def redraw(_: Any) -> None:
        image.value = as_png(floor_figure(billions.value * 1e9, WIDTHS[width.value], here))

    for control in (billions, width):
        control.observe(redraw, names="value")
    show(w.VBox([w.HBox([billions, width]), image]), start)
