"""Figures of few samples: a p99 of few samples is on average too low."""

import numpy as np
import pytest

from specdec_lab.teaching.percentiles import (
    comparisons_figure,
    p99_estimates,
    p99_figure,
    turns_figure,
)
from specdec_ref.errors import SpecdecError


def test_more_samples_say_more() -> None:
    few, many = p99_estimates(60, 0.3), p99_estimates(3000, 0.3)
    assert few.std() > 3 * many.std()
    assert abs(float(np.median(many)) - 1) < 0.02
    assert float(np.median(few)) < 0.97


def test_without_spread_every_estimate_is_right() -> None:
    np.testing.assert_allclose(p99_estimates(20, 0.0), 1)


def test_the_title_says_between_what() -> None:
    low, high = np.percentile(p99_estimates(60, 0.3), [5, 95])
    assert f"{low:.2f} to {high:.2f} times" in p99_figure(60).axes[0].get_title(loc="left")


def test_refuses() -> None:
    with pytest.raises(SpecdecError, match="samples=0"):
        p99_estimates(0, 0.3)


def test_single_comparisons_are_shown_as_they_came() -> None:
    figure = comparisons_figure([1.0, 1.5], [2.0, 3.0], (1.1, 1.4))
    points = figure.axes[0].lines[-1]
    assert (list(points.get_xdata()), list(points.get_ydata())) == ([2.0, 3.0], [1.0, 1.5])
    with pytest.raises(SpecdecError, match="2 and 1 entries"):
        comparisons_figure([1.0, 1.5], [2.0], (1.1, 1.4))


def test_each_plan_tells_its_own_ratio() -> None:
    figure = turns_figure({"blocks": [("A", 1), ("A", 1), ("B", 2), ("B", 2)], "turns": [("A", 1), ("B", 1)]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["blocks: B / A = 2.00", "turns: B / A = 1.00"]
