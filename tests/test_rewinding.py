"""The picture of the cache: one line for each round, as many slots as the loop really has."""

import pytest
import torch

from specdec_lab.teaching.cache_rewinding import cache_figure
from specdec_lab.teaching.replay import PlayedRound
from specdec_ref.errors import SpecdecError


def played(number: int, k: int, accepted: int) -> PlayedRound:
    return PlayedRound(number, tuple(range(k)), (0.5,) * k, (1.0,) * k, (0.1,) * k, accepted, torch.ones(8) / 8, 3)


def test_every_round_is_a_line_and_every_drafted_token_a_cell() -> None:
    rounds = [played(1, 4, 1), played(2, 4, 4), played(3, 4, 0)]
    axes = cache_figure(rounds).axes[0]
    held = sum(start + 1 for start in (0, 2, 7))
    assert len(axes.patches) == held + 3 * 4
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3"]
    assert axes.get_title(loc="left").startswith("Rewinding only changes the length: 7 slots are cut off")


def test_words_are_short_and_legible() -> None:
    axes = cache_figure([played(1, 3, 1)], decode=lambda token: ["\n", "function", "$x"][token]).axes[0]
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["⏎", "fun…", r"\$x"]


def test_rounds_that_do_not_fit_are_left_out_and_none_is_refused() -> None:
    axes = cache_figure([played(i, 8, 8) for i in range(1, 9)]).axes[0]
    assert len(axes.get_yticks()) == 3  # 9 slots a round, 32 at most
    with pytest.raises(SpecdecError, match="rounds: is empty"):
        cache_figure([])
