"""The map of drafts: what it says is the formula's, and it refuses what makes no sense."""

import pytest

import specdec_ref as sd
from specdec_ref.errors import SpecdecError
from specdec_ref.teaching.drafts import speedup_map


def test_the_title_names_the_best_by_the_formula() -> None:
    drafts = {"cheap": (0.02, 0.5), "good": (0.2, 0.9)}
    title = speedup_map(drafts, slope=0.1).axes[0].get_title(loc="left")
    gains = {
        name: max(float(sd.predicted_speedup(a, k, c, lambda n: 1 + 0.1 * (n - 1))) for k in range(1, 8))
        for name, (c, a) in drafts.items()
    }
    winner = max(gains, key=lambda name: gains[name])
    assert title == f"Best here: {winner}, {gains[winner]:.2f}× (red: speculation loses)"


def test_overhead_can_turn_the_choice_round() -> None:
    drafts = {"cheap": (0.0, 0.6), "dear": (0.3, 0.72)}
    assert "cheap" in speedup_map(drafts, slope=0.0).axes[0].get_title(loc="left")
    assert speedup_map(drafts, slope=0.0, overhead=1.0).axes[0].get_title(loc="left")


@pytest.mark.parametrize("arguments", [{"slope": -0.1}, {"slope": "x"}, {"slope": 0.1, "overhead": float("nan")}])
def test_refuses(arguments: dict[str, float]) -> None:
    with pytest.raises(SpecdecError, match="takes a number ≥ 0"):
        speedup_map({}, **arguments)
