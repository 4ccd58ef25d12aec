"""The decision tree: every branch, the picture, and what it would have gained on measured cases."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from matplotlib.text import Annotation

import specdec_ref as sd
from specdec_lab.serving.cases import MeasuredCase, peer_cases, policy_cases
from specdec_lab.serving.decision import (
    COPIES,
    MEMORY,
    PAYS,
    VOCABULARY,
    Situation,
    bytes_per_gpu,
    decide,
    decision_figure,
    parallel_for,
    tensor_parallel_sizes,
)

CHEAP = {2: 1.05, 3: 1.1, 5: 1.2}
EXPENSIVE = {2: 1.7, 3: 2.5, 5: 4.2}


@pytest.mark.parametrize(
    ("situation", "method", "k", "questions"),
    [
        (Situation(1, 0.8, 0.1, CHEAP), "draft_model", 4, (VOCABULARY, MEMORY, PAYS)),
        (Situation(1, 0.3, 0.1, CHEAP), "draft_model", 1, (VOCABULARY, MEMORY, PAYS)),
        (Situation(64, 0.8, 0.1, EXPENSIVE), None, 0, (VOCABULARY, MEMORY, PAYS, COPIES)),
        (Situation(64, 0.8, 0.1, EXPENSIVE, lookup_acceptance=0.6), None, 0, (VOCABULARY, MEMORY, PAYS, COPIES)),
        (Situation(1, 0.8, 0.9, CHEAP, lookup_acceptance=0.6), "ngram", 4, (VOCABULARY, MEMORY, PAYS, COPIES)),
        (Situation(1, 0.8, 0.1, CHEAP, same_vocabulary=False), None, 0, (VOCABULARY, COPIES)),
        (Situation(1, 0.8, 0.1, CHEAP, same_vocabulary=False, lookup_acceptance=0.8), "ngram", 4, (VOCABULARY, COPIES)),
        (Situation(1, 0.8, 0.1, CHEAP, memory=1e9, draft_memory=2e9), None, 0, (VOCABULARY, MEMORY, COPIES)),
        (
            Situation(1, 0.8, 0.1, CHEAP, memory=1e9, draft_memory=2e9, lookup_acceptance=0.8),
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


def test_every_arrow_runs_from_the_side_of_a_box_to_the_side_of_another() -> None:
    figure = decision_figure(decide(Situation(1, 0.8, 0.1, {5: 1.2})))
    figure.canvas.draw()
    (axes,) = figure.axes
    texts, arrows = ([t for t in axes.texts if isinstance(t, Annotation) == yes] for yes in (False, True))
    boxes = [text.get_bbox_patch().get_window_extent() for text in texts if "\n" in text.get_text()]
    assert (len(boxes), len(arrows)) == (7, 8)
    for arrow in arrows:
        ends = axes.transData.transform([arrow.xyann, arrow.xy])
        touched = [[i for i, box in enumerate(boxes) if box.padded(2).contains(*end)] for end in ends]
        assert [len(at) for at in touched] == [1, 1]
        assert touched[0] != touched[1]
        assert not any(box.padded(-2).contains(*end) for box in boxes for end in ends)


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_on_measured_cases_the_tree_gains_and_hardly_loses() -> None:
    """Lesson 07's 24 cells and lesson 08's two modes, with measured speedups for every k that the tree may say."""
    cases = policy_cases(RESULTS / "batch_policy.json") + peer_cases(RESULTS / "compare_peers.json")
    assert len(cases) == 26
    tree = [case.worth(decide(case.situation).k) for case in cases]
    checklist = [case.worth(4 if case.situation.batch <= 8 else 0) for case in cases]
    assert mean(case.best for case in cases) > mean(tree) > mean(checklist) > 1.0  # 7.1: off above 8 requests
    assert min(tree) > 0.9


def test_cases_are_read_as_they_were_recorded() -> None:
    recorded = json.loads((RESULTS / "batch_policy.json").read_text())["policy"]["cells"]
    for case, cell in zip(policy_cases(RESULTS / "batch_policy.json"), recorded, strict=True):
        assert case.situation.batch == cell["batch"]
        assert case.speedups[0] == 1.0
        assert case.best == max(cell["measured"].values())
        assert case.situation.v[5] * cell["costs"]["target_step"] == pytest.approx(cell["costs"]["scoring"]["5"])
    greedy = peer_cases(RESULTS / "compare_peers.json")[1]
    assert greedy.name == "batch 1, greedy"
    assert sorted(greedy.speedups) == list(range(9))


def test_a_file_that_is_not_a_recorded_run_raises(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"policy": 1}')
    for path in (tmp_path / "none.json", tmp_path / "other.json"):
        for read in (policy_cases, peer_cases):
            with pytest.raises(sd.SpecdecError, match="no such recorded run"):
                read(path)
    with pytest.raises(sd.SpecdecError, match="k=3"):
        MeasuredCase("x", Situation(1, 0.8, 0.1, CHEAP), {0: 1.0, 2: 1.3}).worth(3)


def test_the_fewest_gpus_that_hold_it() -> None:
    gib = 2**30
    assert parallel_for(15 * gib, 24 * gib, 8) == (1, 1)
    assert parallel_for(140 * gib, 80 * gib, 8) == (2, 1)
    assert parallel_for(140 * gib, 24 * gib, 8) == (8, 1)
    assert parallel_for(800 * gib, 80 * gib, 8) == (8, 2)
    assert parallel_for(140 * gib, 80 * gib, 5) == (5, 1)  # two do not divide five heads


def test_more_gpus_than_key_value_heads_replicate_them() -> None:
    gib = 2**30
    assert tensor_parallel_sizes(8, 64) == [1, 2, 4, 8]
    assert tensor_parallel_sizes(2, 28) == [1, 2, 4]  # 8 does not divide 28 attention heads
    assert tensor_parallel_sizes(4, 32, gpus_per_node=16) == [1, 2, 4, 8, 16]
    assert parallel_for(140 * gib, 24 * gib, 2, attention_heads=32) == (8, 1)
    assert bytes_per_gpu(100, 8, heads=2, cache=20) == 80 / 8 + 20 / 2
    assert parallel_for(140 * gib, 24 * gib, 2, attention_heads=32, cache=60 * gib) == (8, 2)  # 10 + 30 GiB each


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Situation(0, 0.5, 0.1, CHEAP), "batch="),
        (lambda: Situation(1, 1.5, 0.1, CHEAP), "acceptance="),
        (lambda: Situation(1, 0.5, 0.1, CHEAP, lookup_acceptance=-1), "lookup_acceptance="),
        (lambda: Situation(1, 0.5, 0.1, {1: 1.0}), "v="),
        (lambda: decide(Situation(1, 0.5, -0.1, CHEAP)), "c="),
        (lambda: parallel_for(0, 1, 1), "total="),
        (lambda: parallel_for(1, 1, 0), "heads="),
        (lambda: parallel_for(1, 1, 1, attention_heads=0), "attention_heads="),
        (lambda: parallel_for(1, 1, 1, cache=2), "cache="),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(sd.SpecdecError, match=says):
        call()
