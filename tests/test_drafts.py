"""Figures for choosing a draft: their values are the formula's, and wrong arguments raise."""

from typing import Any

import pytest
import torch

import specdec_ref as sd
from specdec_lab.teaching import drafts as module
from specdec_lab.teaching.drafts import MOST_K, draft_explorer, realized_figure, speedup_map, temperature_figure
from specdec_ref.errors import SpecdecError


def v(n: int) -> float:
    return 1 + 0.1 * (n - 1)


def title(figure: Any) -> str:
    return str(figure.axes[0].get_title(loc="left"))


def test_the_title_names_the_best_by_the_formula() -> None:
    drafts = {"cheap": (0.02, 0.5), "good": (0.2, 0.9)}
    gains = {
        name: max(float(sd.predicted_speedup(a, k, c, v)) for k in range(1, MOST_K + 1))
        for name, (c, a) in drafts.items()
    }
    winner = max(gains, key=lambda name: gains[name])
    assert title(speedup_map(drafts, v)) == f"Best predicted speedup: {winner}, {gains[winner]:.2f}×"


def test_the_largest_k_is_among_those_compared() -> None:
    figure = speedup_map({"perfect": (0.0, 1.0)}, 1.0)
    assert f"{MOST_K + 1:.2f}× (k = {MOST_K})" in figure.axes[0].texts[-1].get_text()


def test_overhead_can_reverse_the_order() -> None:
    """A cost per round favors the draft that needs fewer rounds."""
    drafts = {"cheap": (0.0, 0.6), "costly": (0.2, 0.8)}
    assert "speedup: cheap" in title(speedup_map(drafts, 1.0))
    assert "speedup: costly" in title(speedup_map(drafts, 1.0, overhead=3.0))


def test_every_label_stays_on_the_map() -> None:
    figure = speedup_map({"draft-large": (0.3, 0.7), "draft-small": (0.02, 0.5)}, v)
    figure.canvas.draw()
    axes = figure.axes[0]
    frame = axes.get_window_extent()
    for text in axes.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1


def test_no_name_of_a_line_lies_on_that_of_a_draft() -> None:
    """Costs and rates as lesson 05 measured them once, when two names did."""
    measured = {"small-plain": (0.091, 0.544), "small": (0.092, 0.608), "medium": (0.117, 0.7), "large": (0.197, 0.744)}
    figure = speedup_map({f"draft-{name}": where for name, where in measured.items()}, lambda n: 0.9 if n > 1 else 1.0)
    figure.canvas.draw()
    drafts, lines = [], []
    for text in figure.axes[0].texts:
        (drafts if "draft" in text.get_text() else lines).append(text.get_window_extent())
    assert len(drafts) == 4
    assert len(lines) >= 3
    assert not [1 for draft in drafts for line in lines if draft.overlaps(line)]


def test_the_explorer_s_slider_adds_to_v_where_v_is_below_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[Any] = []
    costs: list[Any] = []
    monkeypatch.setattr(module, "show", lambda widget, _: shown.append(widget))
    monkeypatch.setattr(module, "speedup_map", lambda d, cost, *rest: costs.append(cost) or speedup_map(d, cost, *rest))
    draft_explorer({"a": (0.1, 0.7)}, lambda n: 0.9 if n > 1 else 1.0)
    (widget,) = shown
    widget.children[0].children[0].value = 0.5
    assert [cost(5) for cost in costs] == [0.9, pytest.approx(0.9 + 4 * 0.5)]


@pytest.mark.parametrize("arguments", [{"v": -0.1}, {"v": "x"}, {"v": 1.0, "overhead": float("nan")}])
def test_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(SpecdecError, match="take"):
        speedup_map({}, **arguments)


def test_measured_stands_beside_what_was_predicted() -> None:
    figure = realized_figure({"a": 1.2, "b": 1.5}, {"a": 1.3}, ["x", "y"])
    assert "b, 1.50×" in title(figure)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1.2, 1.5]
    with pytest.raises(SpecdecError, match="the same drafts"):
        realized_figure({"a": 1.2}, {"b": 1.3}, ["x"])


def test_drafts_that_tie_with_the_fastest_are_named() -> None:
    speedups = {"a": 1.2, "b": 1.5, "c": 1.45}
    assert "within noise" not in title(realized_figure(speedups, {}, "xyz"))
    assert title(realized_figure(speedups, {}, "xyz", [0.1, 0.1, 0.1])).endswith("b, 1.50×; within noise: c")
    with pytest.raises(SpecdecError, match="the same drafts"):
        realized_figure(speedups, {}, "xyz", [0.1])


def test_temperature_curves_are_the_rates_given() -> None:
    figure = temperature_figure([0.5, 1.0], {"a": [0.4, 0.6]}, {"a": 0.3})
    curve, at_zero = figure.axes[0].lines
    assert list(curve.get_ydata()) == [0.4, 0.6]
    assert (list(at_zero.get_xdata()), list(at_zero.get_ydata())) == ([0], [0.3])


def test_alpha_of_the_shipped_drafts_over_temperature() -> None:
    """Lesson 05: α rises with temperature for every draft, the order stays, and the weakest draft gains most."""
    names = ["draft-small-plain", "draft-small", "draft-medium", "draft-large"]
    pairs = [sd.load_pair(draft=name, device="cpu") for name in names]
    texts = [pairs[0].tokenizer(text)["input_ids"][:300] for text in list(sd.held_out_prompts().values())[:6]]

    @torch.inference_mode()
    def logits_of(model: Any) -> torch.Tensor:
        return torch.cat([model(torch.tensor([ids])).logits[0].float() for ids in texts])

    target = logits_of(pairs[0].target)
    drafts = [logits_of(pair.draft) for pair in pairs]
    curves = []
    for temperature in (0.2, 0.6, 1.0, 1.6, 2.0):
        sampling = sd.Sampling(temperature=temperature)
        p = sampling.probabilities(target)
        curves.append([float(sd.acceptance_rate(p, sampling.probabilities(q)).mean()) for q in drafts])
    by_temperature = torch.tensor(curves)
    assert (by_temperature.diff(dim=0) > 0).all()
    assert (by_temperature.diff(dim=1) > 0).all()
    gains = by_temperature[-1] - by_temperature[0]
    assert gains.argmax() == 0
