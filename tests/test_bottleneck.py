"""Lesson 01: the explorer, and the profile of a step."""

import pytest
import torch

from specdec_lab.teaching.bottleneck import MACHINES, floor_figure, floor_seconds, profile_steps
from specdec_ref.errors import SpecdecError


def test_the_floor_is_bytes_over_bandwidth() -> None:
    assert floor_seconds(7e9, 2.0, 2e12) == pytest.approx(7e-3)
    with pytest.raises(SpecdecError, match="bandwidth=0"):
        floor_seconds(7e9, 2.0, 0)


def test_the_figure_names_every_machine_and_its_tokens_per_second() -> None:
    axes = floor_figure(7e9, 2.0).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(MACHINES)
    assert all("tokens/s" in text.get_text() for text in axes.texts)


def test_this_machine_is_shown_with_the_others() -> None:
    axes = floor_figure(7e9, 2.0, here=20e9).axes[0]
    assert axes.get_yticklabels()[0].get_text() == "this machine, measured"
    assert axes.texts[0].get_text() == " 1.4 tokens/s: 700.0 ms each"
    assert axes.patches[0].get_width() == pytest.approx(1 / 0.7)


def test_the_profile_counts_each_operator_once_and_its_shares_sum_to_one() -> None:
    """A linear layer calls other operators inside; it is one operator of the step all the same."""
    layer, token = torch.nn.Linear(512, 512, bias=False), torch.ones(1, 512)

    def step() -> torch.Tensor:
        return layer(torch.relu(layer(token)))

    with torch.inference_mode():
        share, operators = profile_steps(step, times=5)
    assert operators == 3
    assert sum(share.values()) == pytest.approx(1)
    assert all(part >= 0 for part in share.values())
    assert share["matrix products"] > 0
    assert share["attention"] == share["KV cache"] == 0
