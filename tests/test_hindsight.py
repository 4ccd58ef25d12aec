"""Figures of lesson 07 show the numbers that they are given, and the formula's."""

import pytest

from specdec_lab.teaching.hindsight import break_even_figure, regret_figure, set_point_figure
from specdec_ref.errors import SpecdecError


def test_the_set_point_falls_as_k_grows() -> None:
    curves = [line for line in set_point_figure().axes[0].lines if line.get_label().startswith("k = ")]
    ratio = [float(curve.get_ydata()[0]) for curve in curves]  # at α = 0.5
    assert ratio == pytest.approx([0.5, (0.5 + 0.25) / 2, (1 - 0.5**4) / 4, (1 - 0.5**8) / 8])


def test_the_title_names_who_is_best_at_its_worst() -> None:
    figure = regret_figure(["easy", "hard"], {"heuristic": [0.9, 0.6], "cost model": [1.0, 0.95]})
    assert "cost model is never below 95% of hindsight" in figure.axes[0].get_title(loc="left")
    rounded = regret_figure(["easy", "hard"], {"heuristic": [0.9, 0.6], "cost model": [1.0, 0.986]})
    assert "cost model is never below 98% of hindsight" in rounded.axes[0].get_title(loc="left")  # a bound: down
    with pytest.raises(SpecdecError, match="one ratio for each case"):
        regret_figure(["easy"], {"heuristic": [0.9, 0.6]})


def test_what_never_pays_is_drawn_above_one() -> None:
    figure = break_even_figure([1, 8], {4: [0.5, float("inf")]}, alpha=0.7)
    heights = list(figure.axes[0].lines[0].get_ydata())
    assert heights[0] == 0.5
    assert heights[1] > 1
    with pytest.raises(SpecdecError, match="one α for each batch size"):
        break_even_figure([1, 8], {4: [0.5]}, alpha=0.7)
