"""Figures of lesson 09: speed of each engine, memory of each GPU, a schedule at work; and sliders for any figure."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab import plotting
from specdec_lab.measurement.memory_profile import MemoryProfile
from specdec_lab.serving.decision import bytes_per_gpu, tensor_parallel_sizes
from specdec_lab.serving.schedule import ScheduleController
from specdec_lab.teaching.figures import as_png
from specdec_lab.teaching.widgets import show
from specdec_ref.decoding import Row, speculate
from specdec_ref.drafting import ModelDrafter
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import GREEDY, SeededRandomness

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@plotting.styled
def pace_figure(speeds: Mapping[str, Mapping[str, Mapping[int, float]]], batch: int, title: str) -> "Figure":
    """Tokens per second of each contender, at one number of requests at once. Contenders of one engine stand together.

    Args:
        speeds: name → mode → batch → tokens per second. A name's first word is its engine.
        batch: requests at once. A contender that was not measured there has no bar.
        title: the message.

    Raises:
        SpecdecError: no contender was measured at that batch size.
    """
    names = list(speeds)
    modes = list(dict.fromkeys(mode for by_mode in speeds.values() for mode in by_mode))
    looks: list[dict[str, Any]] = [{"color": plotting.TARGET}, {"color": plotting.DRAFT, "hatch": "//"}]
    if not any(batch in by_mode.get(mode, {}) for by_mode in speeds.values() for mode in modes):
        raise SpecdecError(f"batch={batch!r:.40}: no contender was measured there")
    engines = [name.replace(",", " ").split()[0] for name in names]
    changes = np.cumsum([0] + [engine != before for before, engine in pairwise(engines)])
    rows = np.arange(len(names)) + 0.6 * changes
    figure, axes = plotting.new_figure(title, "tokens per second", "", width=7.6, height=1.2 + 0.46 * (rows[-1] + 1))
    height = 0.8 / len(modes)
    fastest = max(by_mode.get(mode, {}).get(batch, 0.0) for by_mode in speeds.values() for mode in modes)
    for i, mode in enumerate(modes):
        at = rows + (i - (len(modes) - 1) / 2) * height
        paces = [speeds[name].get(mode, {}).get(batch, np.nan) for name in names]
        axes.barh(at, paces, height * 0.94, label=mode, edgecolor="white", **looks[i % len(looks)])
        for y, pace in zip(at, paces, strict=True):
            if not np.isnan(pace):
                axes.text(pace + fastest / 100, y, f"{pace:.0f}", va="center", fontsize=9)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlim(0, fastest * 1.12)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=len(modes), frameon=False)
    return figure


@plotting.styled
def fit_figure(
    profile: MemoryProfile, gpu_memory: float, heads: int, attention_heads: int, share: float = 0.9
) -> "Figure":
    """Memory of one GPU for each tensor parallel size of one node: target, draft, caches, activations.

    Args:
        profile: of target and draft.
        gpu_memory: bytes of one GPU.
        heads: key/value heads of the target.
        attention_heads: of the target.
        share: of a GPU's memory that may be used; the dashed line.

    Raises:
        SpecdecError: the profile has no draft.
    """
    if profile.draft is None:
        raise SpecdecError("profile: has no draft; takes a memory_profile of target and draft")
    gib = 2**30
    limit = share * gpu_memory / gib
    sizes = tensor_parallel_sizes(heads, attention_heads)
    parts = {
        "target's weights": (profile.target.weights, 0.0),
        "draft's weights": (profile.draft.weights, 0.0),
        "KV caches of both": (profile.kv, float(profile.kv)),
        "activations": (profile.activations, 0.0),
    }
    looks = ((plotting.TARGET, ""), (plotting.DRAFT, "//"), (plotting.ACCEPTED, ".."), (plotting.FORMULA, "xx"))
    totals = [bytes_per_gpu(profile.total, size, heads, profile.kv) / gib for size in sizes]
    fitting = next((size for size, total in zip(sizes, totals, strict=True) if total <= limit), None)
    what = "hold both models and their caches" if fitting and fitting > 1 else "holds both models and their caches"
    gpus = f"{fitting} GPUs" if fitting and fitting > 1 else "One GPU"
    title = f"{gpus} of {gpu_memory / gib:.0f} GiB {what}"
    figure, axes = plotting.new_figure(
        title if fitting else "One node is too small: add nodes, or lower the batch",
        f"GiB on each GPU of {gpu_memory / gib:.0f} GiB",
        "GPUs (tensor parallel size)",
        width=7.6,
    )
    left = np.zeros(len(sizes))
    for (name, (total, cache)), (color, hatch) in zip(parts.items(), looks, strict=True):
        widths = np.array([bytes_per_gpu(total, size, heads, cache) / gib for size in sizes])
        axes.barh(range(len(sizes)), widths, left=left, color=color, hatch=hatch, edgecolor="white", label=name)
        left += widths
    for y, per_gpu in enumerate(totals):
        mark = plotting.ACCEPTED_MARK if per_gpu <= limit else plotting.REJECTED_MARK
        axes.text(per_gpu + max(totals) / 100, y, f"{per_gpu:.0f} {mark}", va="center", fontsize=9)
    axes.axvline(limit, color="black", linestyle="--", label=f"{share:.0%} of one GPU")
    axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlim(0, max(*totals, limit) * 1.12)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def run_schedule(
    pair: Pair, prompts: Sequence[Sequence[int]], lengths: Sequence[int], schedule: Sequence[Sequence[int]]
) -> tuple[list[Row], list[tuple[int, int]]]:
    """Decode requests of different lengths as one batch, with k from a schedule by batch size. Greedy.

    Args:
        pair: with a draft.
        prompts: token ids of each request.
        lengths: new tokens of each request.
        schedule: rows [first batch size, last batch size, k].

    Returns:
        The finished rows, and (active requests, k) of every round.
    """
    if pair.draft is None:
        raise SpecdecError("pair: has no draft model, so there is nothing to speculate with")
    rows = [Row(tuple(prompt), length) for prompt, length in zip(prompts, lengths, strict=True)]
    target, drafter = TransformersModel(pair.target), ModelDrafter(TransformersModel(pair.draft))
    controller = ScheduleController(schedule, len(rows))
    trace = []
    for active in speculate(target, drafter, rows, controller, GREEDY, SeededRandomness(0), pair.eos):
        trace.append((len(active), max(len(row.rounds[-1].drafted) for row in active)))
    return rows, trace


@plotting.styled
def schedule_figure(trace: Sequence[tuple[int, int]]) -> "Figure":
    """Active requests and k over the rounds. trace: as `run_schedule` returns it. Raises SpecdecError for no rounds."""
    if not trace:
        raise SpecdecError("trace: is empty; takes (active requests, k) of each round")
    requests, ks = zip(*trace, strict=True)
    figure, (upper, lower) = plotting.new_figure(
        "k rises as requests finish", "", "requests\nin the batch", height=3.8, nrows=2, sharex=True
    )
    rounds = range(1, len(trace) + 1)
    upper.step(rounds, requests, color=plotting.TARGET, where="mid")
    upper.set_ylim(0, max(requests) * 1.15)
    upper.yaxis.get_major_locator().set_params(integer=True)
    lower.step(rounds, ks, color=plotting.DRAFT, where="mid")
    lower.set(ylabel="tokens\ndrafted, k", xlabel="round", ylim=(-0.3, max(ks) + 0.7))
    return figure


def explorer(draw: "Callable[..., Figure]", **controls: Sequence[Any]) -> None:
    """Show `draw` with a slider for each of its arguments.

    Args:
        draw: returns a figure for one value of each argument.
        controls: argument → the values it takes; the first one is shown at the beginning.

    Raises:
        SpecdecError: a control has no values.
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
