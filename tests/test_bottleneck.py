"""Lesson 01's explorer."""

import pytest

from specdec_lab.teaching.bottleneck import MACHINES, floor_figure, floor_seconds
from specdec_ref.errors import SpecdecError


def test_the_floor_is_bytes_over_bandwidth() -> None:
    assert floor_seconds(7e9, 2.0, 2e12) == pytest.approx(7e-3)
    with pytest.raises(SpecdecError, match="bandwidth=0"):
        floor_seconds(7e9, 2.0, 0)


def test_the_figure_names_every_machine_and_its_tokens_per_second() -> None:
    axes = floor_figure(7e9, 2.0).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(MACHINES)
    assert all("tokens/s" in text.get_text() for text in axes.texts)


def test_this_machine_stands_beside_the_others() -> None:
    axes = floor_figure(7e9, 2.0, here=20e9).axes[0]
    assert axes.get_yticklabels()[0].get_text() == "this machine, measured"
    assert axes.texts[0].get_text() == " 700.0 ms: at most 1.4 tokens/s"
