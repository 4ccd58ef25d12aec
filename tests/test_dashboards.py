"""Pictures of what a monitor shows: their heights are the statistics', their title the formula's."""

import pytest

import specdec_lab as lab
from specdec_lab.teaching.dashboards import expected_dashboard, histogram_figure, position_figure
from specdec_ref.errors import SpecdecError


def heights(figure: object) -> list[float]:
    return [bar.get_height() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]


def test_what_is_expected() -> None:
    figure = expected_dashboard(0.5, 2)
    assert heights(figure) == [0.5, 0.5, 0.5, 0.25]
    assert figure.axes[0].get_title(loc="left") == "α = 0.50, and yet accepted / drafted is 0.38 at k = 2"


def test_what_was_watched() -> None:
    monitor = lab.SpeculativeDecodingMonitor()
    for accepted in (0, 1, 2, 2):
        monitor.on_iteration_complete(accepted, 2)
    now = monitor.get_statistics()
    assert heights(position_figure(now)) == [*now.conditional_rates, *now.unconditional_rates]


def test_histogram_stands_beside_one_alpha() -> None:
    monitor = lab.SpeculativeDecodingMonitor()
    for accepted in (0, 1, 2, 2):
        monitor.on_iteration_complete(accepted, 2)
    now = monitor.get_statistics()  # 5 of 7 judged tokens
    figure = histogram_figure(now)
    assert heights(figure) == [1, 1, 2]
    (strokes,) = figure.axes[0].collections
    alpha = 5 / 7
    expected = [4 * (1 - alpha), 4 * alpha * (1 - alpha), 4 * alpha**2]
    assert [segment[0][1] for segment in strokes.get_segments()] == pytest.approx(expected)
    assert sum(expected) == pytest.approx(now.drafts)


def test_refuses() -> None:
    with pytest.raises(SpecdecError, match="nothing was drafted"):
        histogram_figure(lab.SpeculativeDecodingMonitor().get_statistics())
    with pytest.raises(SpecdecError, match="nothing was drafted"):
        position_figure(lab.SpeculativeDecodingMonitor().get_statistics())
    with pytest.raises(SpecdecError, match="alpha=2"):
        expected_dashboard(2, 4)
