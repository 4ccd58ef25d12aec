"""The decision tree: every branch, the picture, and what it would have gained on measured cases."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import specdec_ref as sd
from specdec_ref.serving.decision import (
    COPIES,
    MEMORY,
    PAYS,
    VOCABULARY,
    Situation,
    decide,
    decision_figure,
    parallel_for,
)

CHEAP = {2: 1.05, 3: 1.1, 5: 1.2}
DEAR = {2: 1.7, 3: 2.5, 5: 4.2}


@pytest.mark.parametrize(
    ("situation", "method", "k", "questions"),
    [
        (Situation(1, 0.8, 0.1, CHEAP), "draft_model", 4, (VOCABULARY, MEMORY, PAYS)),
        (Situation(1, 0.3, 0.1, CHEAP), "draft_model", 1, (VOCABULARY, MEMORY, PAYS)),
        (Situation(64, 0.8, 0.1, DEAR), None, 0, (VOCABULARY, MEMORY, PAYS)),
        (Situation(1, 0.8, 0.1, CHEAP, same_vocabulary=False), None, 0, (VOCABULARY, COPIES)),
        (Situation(1, 0.8, 0.1, CHEAP, same_vocabulary=False, copies=True), "ngram", 4, (VOCABULARY, COPIES)),
        (Situation(1, 0.8, 0.1, CHEAP, memory=1e9, draft_memory=2e9), None, 0, (VOCABULARY, MEMORY, COPIES)),
        (
            Situation(1, 0.8, 0.1, CHEAP, memory=1e9, draft_memory=2e9, copies=True),
            "ngram",
            4,
            (VOCABULARY, MEMORY, COPIES),
        ),
    ],
)
def test_every_way_through_the_tree(
    situation: Situation, method: str | None, k: int, questions: tuple[str, ...]
) -> None:
    decision = decide(situation)
    assert (decision.method, decision.k) == (method, k)
    assert tuple(question for question, _ in decision.path) == questions
    words = [text.get_text() for text in decision_figure(decision).axes[0].texts]
    assert {*questions} <= {*words}
    assert decision_figure(decision).axes[0].get_title(loc="left").startswith("This case")


def test_on_measured_cases_the_tree_gains_and_hardly_loses() -> None:
    """The recorded run of lesson 06: 12 cells of batch and context, each with measured speedups for k = 0, 2, 4."""
    recorded = json.loads((Path(__file__).parents[1] / "benchmarks/results/batch_policy.json").read_text())
    gained = []
    for cell in recorded["policy"]["cells"]:
        costs = cell["costs"]
        v = {int(n): seconds / costs["target_step"] for n, seconds in costs["scoring"].items() if n != "1"}
        decision = decide(Situation(cell["batch"], cell["alpha"], costs["draft_step"] / costs["target_step"], v))
        gained.append(cell["measured"][str(decision.k)])
    checklist = [cell["measured"]["4"] if cell["batch"] <= 8 else 1.0 for cell in recorded["policy"]["cells"]]
    assert len(gained) == 12
    assert mean(gained) > mean(checklist) > 1.0  # the source text's 7.1 switches off above 8 requests
    assert min(gained) > 0.9


def test_the_fewest_gpus_that_hold_it() -> None:
    gib = 2**30
    assert parallel_for(15 * gib, 24 * gib, 8) == (1, 1)
    assert parallel_for(140 * gib, 80 * gib, 8) == (2, 1)
    assert parallel_for(140 * gib, 24 * gib, 8) == (8, 1)
    assert parallel_for(800 * gib, 80 * gib, 8) == (8, 2)
    assert parallel_for(140 * gib, 80 * gib, 5) == (5, 1)  # two do not divide five heads


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Situation(0, 0.5, 0.1, CHEAP), "batch="),
        (lambda: Situation(1, 1.5, 0.1, CHEAP), "acceptance="),
        (lambda: Situation(1, 0.5, 0.1, {1: 1.0}), "v="),
        (lambda: decide(Situation(1, 0.5, -0.1, CHEAP)), "c="),
        (lambda: parallel_for(0, 1, 1), "total="),
        (lambda: parallel_for(1, 1, 0), "heads="),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(sd.SpecdecError, match=says):
        call()
