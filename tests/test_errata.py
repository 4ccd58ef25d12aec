"""docs/errata.md: its numbers are recomputed, and the files that it names exist."""

import re
from pathlib import Path

import pytest

import specdec_ref as sd
from specdec_lab.measurement.intervals import samples_needed
from specdec_lab.teaching.exercises.memory import SHAPES
from specdec_lab.teaching.heuristics import get_optimal_speculation_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "errata.md").read_text(encoding="utf-8")


def accepted_only(alpha: float, k: int) -> float:
    """The module's speedup at r = 10: the bonus token is not counted."""
    return (sd.expected_tokens(alpha, k) - 1) / (k / 10 + 1)


@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.9])
def test_the_best_choices_of_both_formulas_are_on_the_page(alpha: float) -> None:
    k = max(range(1, 20), key=lambda k: accepted_only(alpha, k))
    assert f"{accepted_only(alpha, k):.2f}× (k = {k})" in PAGE
    best = sd.best_k(alpha, c=0.1)
    assert f"{sd.predicted_speedup(alpha, best, c=0.1):.2f}× (k = {best})" in PAGE


def test_speedups_of_the_table_of_drafts_follow_from_its_rates() -> None:
    gains = [sd.predicted_speedup(alpha, 4, c=1 / r) for r, alpha in ((10, 0.75), (6, 0.85), (30, 0.6))]
    assert "{:.2f}×, {:.2f}× and {:.2f}×".format(*gains) in PAGE


def test_weights_samples_and_step_times_are_right() -> None:
    large, small = (2 * SHAPES[name]["parameters"] / 1e9 for name in ("70B", "7B"))
    assert f"70B model have {large:.0f} GB and those of a 7B model {small:.1f} GB" in PAGE
    assert f"takes {small / 2.04:.1f} ms at 2.04 TB/s" in PAGE
    assert f"above the true p99 is {0.99**60:.0%}".replace("%", " %") in PAGE
    assert f"at least {samples_needed(0.99)} samples" in PAGE
    assert f"{1000 / 104.9:.1f} ms" in PAGE


def test_cases_of_the_four_rules_are_caught_by_the_last_one() -> None:
    for batch, length in ((1, 3000), (6, 100)):
        assert str(get_optimal_speculation_config(batch, length)["reason"]).startswith("Medium batch")


def test_every_named_file_exists() -> None:
    named = set(re.findall(r"`((?:tests|exercises)/[\w.]+)`", PAGE)) | {
        f"docs/{link}" for link in re.findall(r"\]\((\w+\.md)\)", PAGE)
    }
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_statement_names_where_it_is_shown() -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith("| [")]
    assert len(rows) > 25
    for row in rows:
        _, _, right, shown, _ = re.split(r"(?<!\\)\|", row)
        assert right.strip()
        assert re.search(r"lessons? \d\d|exercise \d\d", shown)
