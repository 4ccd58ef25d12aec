"""Figures of a monitor's statistics: their bars are the statistics, their titles the formula's values."""

import numpy as np
import pytest

import specdec_lab as lab
import specdec_ref as sd
from specdec_lab.teaching.dashboards import expected_dashboard, histogram_figure, mark_texts, position_figure
from specdec_ref.errors import SpecdecError


def heights(figure: object) -> list[float]:
    return [bar.get_height() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]


def test_what_is_expected() -> None:
    figure = expected_dashboard(0.5, 2)
    assert heights(figure) == [0.5, 0.5, 0.5, 0.25]
    assert figure.axes[0].get_title(loc="left") == "α is 0.50, but accepted / drafted is 0.38 at k = 2"


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
    now = monitor.get_statistics()  # 5 of 7 examined tokens
    figure = histogram_figure(now)
    assert heights(figure) == [1, 1, 2]
    (strokes,) = figure.axes[0].collections
    alpha = 5 / 7
    expected = [4 * (1 - alpha), 4 * alpha * (1 - alpha), 4 * alpha**2]
    assert [segment[0][1] for segment in strokes.get_segments()] == pytest.approx(expected)
    assert sum(expected) == pytest.approx(now.drafts)


def test_every_text_is_marked_at_its_first_round() -> None:
    monitor = lab.SpeculativeDecodingMonitor(window=2)
    for accepted in (0, 1, 2, 2, 1, 0):
        monitor.on_iteration_complete(accepted, 2)
    plain, marked = (monitor.plot_acceptance_over_time() for _ in range(2))
    mark_texts(marked, [1, 4])
    added = marked.axes[0].lines[len(plain.axes[0].lines) :]
    assert [line.get_xdata()[0] for line in added] == [1, 4]
    assert [text.get_text().strip() for text in marked.axes[0].texts] == ["text 1", "text 2"]
    assert marked.axes[0].get_xlim()[0] <= 1
    with pytest.raises(SpecdecError, match="rising"):
        mark_texts(plain, [4, 1])


def test_a_rolling_rate_leaves_the_band_though_nothing_changes() -> None:
    """What lesson 06 shows for 128 simulated rounds with α = 0.65 and its seed."""
    rng, steady = np.random.default_rng(10), lab.SpeculativeDecodingMonitor(window=40)
    for _ in range(128):
        steady.on_iteration_complete(int((rng.random(4) < 0.65).cumprod().sum()), 4)
    accepted = np.array([r.accepted for r in steady.rounds])
    examined = np.minimum(accepted + 1, 4)
    rolling = [accepted[i : i + 32].sum() / examined[i : i + 32].sum() for i in range(len(accepted) - 31)]
    low, high = steady.get_statistics().acceptance_interval
    assert min(rolling) < low < 0.65 < high < max(rolling)


def test_a_target_that_drafts_for_itself_gains_nothing() -> None:
    """What lesson 06 says of setup 3: (k + 1) / (k + v), which is above 1 only where v < 1."""
    for k in range(1, 9):
        assert all(sd.predicted_speedup(1.0, k, c=1.0, v=v) <= 1 for v in (1.0, 1.2, 2.0))
        assert 1 < sd.predicted_speedup(1.0, k, c=1.0, v=0.9) < 1.06


def test_refuses() -> None:
    with pytest.raises(SpecdecError, match="nothing was drafted"):
        histogram_figure(lab.SpeculativeDecodingMonitor().get_statistics())
    with pytest.raises(SpecdecError, match="nothing was drafted"):
        position_figure(lab.SpeculativeDecodingMonitor().get_statistics())
    with pytest.raises(SpecdecError, match="alpha=2"):
        expected_dashboard(2, 4)
