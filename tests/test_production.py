"""Figures of lesson 09: the bars and points are the numbers given, and a slider redraws."""

from typing import Any

import pytest

from specdec_lab import plotting
from specdec_lab.teaching import production
from specdec_lab.teaching.production import explorer, judged_figure, pace_figure
from specdec_ref.errors import SpecdecError

SPEEDS = {"alone": {"greedy": {1: 50.0, 8: 200.0}}, "drafting": {"greedy": {1: 90.0}, "temperature 1": {1: 60.0}}}


def test_bars_are_the_paces_of_that_batch() -> None:
    axes = pace_figure(SPEEDS, 1, "t").axes[0]
    assert sorted(b.get_width() for b in axes.patches if b.get_width() > 0) == [50.0, 60.0, 90.0]  # type: ignore[attr-defined]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["alone", "drafting"]
    with pytest.raises(SpecdecError, match="batch=3"):
        pace_figure(SPEEDS, 3, "t")


def test_points_are_what_was_measured() -> None:
    axes = judged_figure([("a", 1.2, 1.0, 1.3), ("b", 0.9, 1.1, 1.1)], "t").axes[0]
    by_label = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert by_label["the tree"] == [1.2, 0.9]
    assert by_label["best in hindsight"] == [1.3, 1.1]
    with pytest.raises(SpecdecError, match="rows"):
        judged_figure([], "t")


def test_moving_a_slider_draws_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, shown = [], []

    def draw(batch: int, alpha: float) -> Any:
        drawn.append((batch, alpha))
        return plotting.new_figure(f"{batch} {alpha}")[0]

    monkeypatch.setattr(production, "show", lambda widget, picture: shown.append(widget))
    explorer(draw, batch=[1, 8], alpha=[0.7, 0.1])
    sliders, _ = shown[0].children
    sliders.children[0].value = 8
    sliders.children[1].value = 0.1
    assert drawn == [(1, 0.7), (8, 0.7), (8, 0.1)]
    with pytest.raises(SpecdecError, match="controls"):
        explorer(draw)
