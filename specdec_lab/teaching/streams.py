"""Artificial streams of rounds with a known α and known costs, to compare controllers on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab import plotting
from specdec_lab.teaching.figures import as_png
from specdec_lab.teaching.heuristics import AdaptiveSpeculation
from specdec_lab.teaching.widgets import show
from specdec_ref.control import CostModelSpeculation
from specdec_ref.decoding import Controller, Round
from specdec_ref.errors import SpecdecError
from specdec_ref.theory import Cost, best_k

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_K = 8


@dataclass(frozen=True)
class Stream:
    """ks: tokens drafted in each round. tokens: emitted by all rounds. cost: of all rounds, in autoregressive steps."""

    ks: tuple[int, ...]
    tokens: int
    cost: float

    @property
    def speedup(self) -> float:
        """Tokens per autoregressive step's time."""
        return self.tokens / self.cost


def play_stream(controller: Controller, alphas: Sequence[float], c: float, v: Cost = 1.0, seed: int = 0) -> Stream:
    """Play one round for each α, with the k that the controller chooses. No model and no clock is involved.

    Each drafted token is accepted with probability α, by the same random numbers for every controller.

    Args:
        controller: with given costs.
        alphas: α of each round.
        c, v: costs, as in `predicted_speedup`.
        seed: of the random numbers.

    Raises:
        SpecdecError: the controller times its rounds.
    """
    if getattr(controller, "measures_costs", False):
        raise SpecdecError("controller: times its rounds, but these take no time; give it the costs")
    u = np.random.default_rng(seed).random((len(alphas), max(MAX_K, controller.max_k)))
    ks, tokens, cost = [], 0, 0.0
    for alpha, row in zip(alphas, u, strict=True):
        k = controller.next_k()
        accepted = int((row[:k] < alpha).cumprod().sum())
        controller.observe([Round((0,) * k, accepted, (0,) * (accepted + 1), 0.0, 0.0)])
        ks.append(k)
        tokens += accepted + 1
        cost += k * c + (v(k + 1) if callable(v) else v if k else 1.0)
    return Stream(tuple(ks), tokens, cost)


@plotting.styled
def controllers_figure(before: float, after: float, c: float, slope: float = 0.1, rounds: int = 240) -> "Figure":
    """k over the rounds of a stream whose α changes in the middle: heuristic, cost model, and best k.

    Args:
        before, after: α in the two halves.
        c: cost of a draft step.
        slope: cost of each further scored token, v(n) = 1 + slope·(n − 1).
        rounds: in all.
    """
    alphas = [before] * (rounds // 2) + [after] * (rounds - rounds // 2)

    def v(n: int) -> float:
        return 1 + slope * (n - 1)

    heuristic = play_stream(AdaptiveSpeculation(max_k=MAX_K), alphas, c, v)
    model = play_stream(CostModelSpeculation(MAX_K, c=c, v=v), alphas, c, v)
    best = [best_k(alpha, c, v, max_k=MAX_K) for alpha in alphas]
    figure, axes = plotting.new_figure(
        f"Over the whole stream: heuristic {heuristic.speedup:.2f}×, cost model {model.speedup:.2f}×",
        "round", "tokens drafted, k", width=8.0,
    )  # fmt: skip
    x = range(1, rounds + 1)
    axes.step(x, best, "--", color=plotting.FORMULA, where="mid", label="best, if α were known")
    axes.step(x, heuristic.ks, "-", color=plotting.DRAFT, where="mid", linewidth=1.6, label="heuristic")
    axes.step(x, model.ks, "-", color=plotting.TARGET, where="mid", linewidth=1.6, label="cost model")
    axes.vlines(rounds // 2 + 0.5, -0.4, MAX_K + 0.5, color="black", linewidth=0.8)
    for at, alpha in ((0.25, before), (0.75, after)):
        axes.text(at * rounds, MAX_K + 0.35, f"α = {alpha:.2f}", ha="center", fontsize=10)
    axes.set_ylim(-0.4, MAX_K + 1.2)
    axes.set_yticks(range(0, MAX_K + 1, 2))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def controllers_explorer() -> None:
    """`controllers_figure` with sliders for α before and after, and for the cost of a draft step."""
    import ipywidgets as w

    settings: dict[str, Any] = {"min": 0, "max": 0.98, "step": 0.02, "continuous_update": False}
    before = w.FloatSlider(value=0.9, description="α before", **settings)
    after = w.FloatSlider(value=0.3, description="α after", **settings)
    c = w.FloatSlider(value=0.1, min=0, max=0.6, step=0.02, description="c", continuous_update=False)
    start = controllers_figure(before.value, after.value, c.value)
    image = w.Image(value=as_png(start), format="png", width=800)

    def redraw(_: Any) -> None:
        image.value = as_png(controllers_figure(before.value, after.value, c.value))

    for slider in (before, after, c):
        slider.observe(redraw, names="value")
    show(w.VBox([w.HBox([before, after, c]), image]), start)
