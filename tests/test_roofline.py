"""The machine's limits: what a step asks for is counted right, and what is measured is what a machine can do."""

import pytest
import torch
from torch import nn

from specdec_lab.measurement.roofline import Limits, Step, measure_limits, roofline_figure, step_of
from specdec_ref.errors import SpecdecError

LIMITS = Limits("a machine", "float32", bandwidth=10e9, arithmetic=100e9)


def test_a_step_reads_every_matrix_once_and_multiplies_for_every_token() -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    one, five = step_of(model, 1), step_of(model, 5)
    weights = 8 * 16 + 16 * 4
    assert (one.bytes, one.operations) == (4 * weights, 2 * weights)
    assert (five.bytes, five.operations) == (4 * weights, 10 * weights)
    assert one.intensity == 0.5  # two operations for each weight of four bytes
    assert step_of(model.to(torch.bfloat16), 1).intensity == 1


def test_below_the_ridge_memory_sets_the_pace_and_above_it_arithmetic() -> None:
    assert LIMITS.ridge == 10
    assert LIMITS.floor(Step(1, 1e9, 0.5e9)) == 0.1
    assert LIMITS.floor(Step(100, 1e9, 50e9)) == 0.5


def test_a_measured_machine_has_limits() -> None:
    found = measure_limits(mebibytes=64, repeats=3)
    assert 1e8 < found.bandwidth < 1e13
    assert 1e8 < found.arithmetic < 1e15
    assert "GB/s" in found._repr_html_()
    assert found.__rich__().row_count == 3


def test_bad_arguments_are_named() -> None:
    with pytest.raises(SpecdecError, match="tokens=0"):
        step_of(nn.Linear(2, 2), 0)
    with pytest.raises(SpecdecError, match="no linear layer"):
        step_of(nn.Embedding(2, 2), 1)
    with pytest.raises(SpecdecError, match="points: is empty"):
        roofline_figure(LIMITS, {})


def test_the_figure_names_its_points() -> None:
    figure = roofline_figure(LIMITS, {"one token": (Step(1, 1e9, 0.5e9), 0.2)})
    assert "one token" in [text.get_text() for text in figure.axes[0].texts]
