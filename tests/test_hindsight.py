"""Figures of lesson 07 show the numbers that they are given, and the lesson's claims hold for the recorded runs."""

import json
from pathlib import Path
from statistics import mean

import pytest

import specdec_ref as sd
from specdec_lab.measurement.policy import SpeculationPolicy
from specdec_lab.serving.cases import held_out, policy_cases
from specdec_lab.serving.decision import Situation, decide
from specdec_lab.teaching.heuristics import AdaptiveSpeculation
from specdec_lab.teaching.hindsight import (
    batch_figure,
    break_even_figure,
    judged_figure,
    regret_figure,
    set_point_figure,
)
from specdec_lab.teaching.streams import play_stream
from specdec_ref.errors import SpecdecError


def test_the_set_point_falls_as_k_grows() -> None:
    curves = [line for line in set_point_figure().axes[0].lines if line.get_label().startswith("k = ")]
    ratio = [float(curve.get_ydata()[0]) for curve in curves]  # at α = 0.5
    assert ratio == pytest.approx([0.5, (0.5 + 0.25) / 2, (1 - 0.5**4) / 4, (1 - 0.5**8) / 8])


def test_the_title_names_who_is_best_at_its_worst() -> None:
    figure = regret_figure(["easy", "hard"], {"heuristic": [0.9, 0.6], "cost model": [1.0, 0.95]})
    assert "cost model reaches at least 95 % of the best fixed k" in figure.axes[0].get_title(loc="left")
    rounded = regret_figure(["easy", "hard"], {"heuristic": [0.9, 0.6], "cost model": [1.0, 0.986]})
    assert "cost model reaches at least 98 % of the best fixed k" in rounded.axes[0].get_title(
        loc="left"
    )  # a bound: down
    with pytest.raises(SpecdecError, match="one ratio for each case"):
        regret_figure(["easy"], {"heuristic": [0.9, 0.6]})


def test_what_never_pays_is_drawn_above_one() -> None:
    figure = break_even_figure([1, 8], {4: [0.5, float("inf")]}, alpha=0.7)
    heights = list(figure.axes[0].lines[0].get_ydata())
    assert heights[0] == 0.5
    assert heights[1] > 1
    with pytest.raises(SpecdecError, match="one α for each batch size"):
        break_even_figure([1, 8], {4: [0.5]}, alpha=0.7)


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def recorded() -> SpeculationPolicy:
    return SpeculationPolicy.from_json(json.loads((RESULTS / "batch_policy.json").read_text())["policy"])


def test_points_are_what_was_measured() -> None:
    axes = judged_figure([("a", 1.2, 1.0, 1.3), ("b", 0.9, 1.1, 1.1)], "t").axes[0]
    by_label = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert by_label["the tree"] == [1.2, 0.9]
    assert by_label["best in hindsight"] == [1.3, 1.1]
    with pytest.raises(SpecdecError, match="rows"):
        judged_figure([], "t")


def test_losses_are_marked_and_named(recorded: SpeculationPolicy) -> None:
    axes = batch_figure(recorded, 64).axes[0]
    by_label = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    for k in (2, 4, 8):
        assert by_label[f"k = {k}"] == [recorded.cell(batch, 64).measured[k] for batch in recorded.batches]
    crosses = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "x"]
    assert crosses == [[16, 32]]
    assert axes.get_title(loc="left") == "k = 8 loses at batch 16 and 32"
    with pytest.raises(SpecdecError, match="context=65"):
        batch_figure(recorded, 65)


# --- what lesson 07 claims about recorded runs ---


def test_lesson_07_on_the_recorded_batches(recorded: SpeculationPolicy) -> None:
    first, last = recorded.cell(1, 64), recorded.cell(32, 64)
    assert max(first.measured[k] for k in (2, 4, 8)) - min(first.measured[k] for k in (2, 4, 8)) < 0.1  # 'the same'
    assert [round(1 - recorded.cell(batch, 64).measured[8], 2) for batch in (16, 32)] == [0.13, 0.13]
    assert round(last.measured[2], 2) == 1.15
    assert round(last.costs.v(3), 1) == 1.7
    assert {cell.k for cell in recorded.cells if cell.batch >= 16} == {2}
    assert {cell.k for cell in recorded.cells if cell.batch <= 2} == {2, 4}
    alpha = recorded.facts["settings"]["alpha"]
    costs = [recorded.cell(batch, 256).costs for batch in recorded.batches]
    for k in (2, 8):
        least = [sd.break_even_alpha(k, cost.c, cost.v) for cost in costs]
        assert least[-1] > least[0]
        assert (least[-1] > alpha) == (k == 8)


def test_lesson_07_on_the_tree_and_held_out_cells() -> None:
    cases = held_out(policy_cases(RESULTS / "batch_policy.json"))
    tree = [case.worth(decide(case.situation).k) for case in cases]
    rule = [case.worth(4 if case.situation.batch <= 8 else 0) for case in cases]
    best = mean(case.best for case in cases)
    assert best > mean(tree) > 0.99 * best > mean(rule)
    assert mean(tree) > mean(case.worth(2) for case in cases) > 0.98 * mean(tree)
    for case, found in zip(cases, tree, strict=True):
        k = decide(case.situation).k
        assert k == (4 if case.situation.batch <= 2 else 2)
        assert found > 1
    costs = {case.situation.batch: case.situation.v for case in policy_cases(RESULTS / "batch_policy.json")[:6]}
    explored = [decide(Situation(*case, costs[case[0]])) for case in ((16, 0.74, 0.14), (32, 0.6, 0.14))]
    assert [(one.method, one.k) for one in explored] == [("draft_model", 2), (None, 0)]
    assert decide(Situation(32, 0.6, 0.14, costs[32], lookup_acceptance=0.6)).method == "ngram"
    many = [value for value, case in zip(tree, cases, strict=True) if case.situation.batch >= 16]
    assert mean(many) == pytest.approx(1.2, abs=0.02)


def test_lesson_07_on_the_recorded_controllers() -> None:
    workloads = json.loads((RESULTS / "controllers_ablation.json").read_text())["workloads"]
    model = {name: one["contenders"]["cost model"]["of_best_k"] for name, one in workloads.items()}
    assert len(model) == 8
    assert min(model.values()) >= 0.96
    assert sorted(name for name, value in model.items() if value < 0.97) == ["hard prose", "useless draft"]
    assert round(model["draft turns bad"], 2) == 1.21
    assert round(workloads["useless draft"]["contenders"]["k = 4"]["of_best_k"], 2) == 0.63


def v(n: int) -> float:
    return 1 + 0.1 * (n - 1)


def test_lesson_07_on_the_stream_whose_acceptance_drops() -> None:
    """The cost model drafts less than the best k in rounds 20 to 60, and both notice the drop as the text says."""
    drop = [0.9] * 120 + [0.3] * 120
    model = play_stream(sd.CostModelSpeculation(8, c=0.1, v=v), drop, 0.1, v)
    heuristic = play_stream(AdaptiveSpeculation(max_k=8), drop, 0.1, v)
    assert sd.best_k(0.9, 0.1, v, max_k=8) == 7
    assert set(model.ks[20:60]) == {4, 5}
    assert set(heuristic.ks[20:60]) == {5}
    assert max(model.ks[141:]) == 1
    assert heuristic.ks[148] == 5
    assert model.speedup > heuristic.speedup


def test_a_case_held_out_is_decided_by_the_costs_of_the_others() -> None:
    cases = policy_cases(RESULTS / "batch_policy.json")
    others = [case.situation for case in cases[1:] if case.situation.batch == cases[0].situation.batch]
    assert held_out(cases)[0].situation.c in [other.c for other in others]
    assert held_out(cases)[0].speedups == cases[0].speedups
    with pytest.raises(SpecdecError, match="no other case of batch 1"):
        held_out(cases[:2])
