"""Streams with known α: the tokens and costs of a fixed k are the formula's, and controllers observe every round."""

import pytest

import specdec_ref as sd
from specdec_lab.teaching.streams import controllers_figure, play_stream
from specdec_ref.control import FixedK
from specdec_ref.errors import SpecdecError


def test_a_fixed_k_yields_what_the_formula_says() -> None:
    """200,000 rounds: the mean of E[tokens] = 2.77 is within 0.02, some 6 standard errors."""
    stream = play_stream(FixedK(3), [0.8] * 200_000, c=0.1, v=lambda n: 1 + 0.1 * (n - 1))
    assert stream.tokens / 200_000 == pytest.approx(float(sd.expected_tokens(0.8, 3)), abs=0.02)
    assert stream.cost == pytest.approx(200_000 * (0.3 + 1.3))


def test_certain_cases() -> None:
    assert play_stream(FixedK(4), [1.0] * 5, c=0.0).tokens == 25
    assert play_stream(FixedK(4), [0.0] * 5, c=0.5).speedup == pytest.approx(1 / 3)
    assert play_stream(FixedK(0), [0.9] * 5, c=0.5).speedup == 1


def test_the_cost_model_stops_where_nothing_is_accepted() -> None:
    stream = play_stream(sd.CostModelSpeculation(8, c=0.3), [0.0] * 400, c=0.3)
    assert sum(k == 0 for k in stream.ks[-100:]) > 80


def test_a_controller_with_a_clock_is_refused() -> None:
    with pytest.raises(SpecdecError, match="times its rounds"):
        play_stream(sd.CostModelSpeculation(8), [0.5], c=0.1)


def test_the_picture_says_both_speedups() -> None:
    assert "cost model" in controllers_figure(0.9, 0.3, 0.1, rounds=40).axes[0].get_title(loc="left")
