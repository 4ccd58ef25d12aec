"""Figures of lesson 09: bars and lines are the numbers given, a schedule is followed, and a slider redraws."""

from typing import Any

import pytest

import specdec_ref as sd
from specdec_lab import plotting
from specdec_lab.measurement.memory_profile import MemoryProfile, ModelMemory
from specdec_lab.teaching import production
from specdec_lab.teaching.production import explorer, fit_figure, pace_figure, run_schedule, schedule_figure
from specdec_ref.errors import SpecdecError

SPEEDS = {"alone": {"greedy": {1: 50.0, 8: 200.0}}, "drafting": {"greedy": {1: 90.0}, "temperature 1": {1: 60.0}}}


def test_bars_are_the_paces_of_that_batch() -> None:
    axes = pace_figure(SPEEDS, 1, "t").axes[0]
    assert sorted(b.get_width() for b in axes.patches if b.get_width() > 0) == [50.0, 60.0, 90.0]  # type: ignore[attr-defined]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["alone", "drafting"]
    with pytest.raises(SpecdecError, match="batch=3"):
        pace_figure(SPEEDS, 3, "t")


def test_contenders_of_one_engine_stand_together() -> None:
    names = ["ours, alone", "ours, k = 4", "vLLM, alone", "vLLM, k = 4"]
    axes = pace_figure({name: {"greedy": {1: 50.0}} for name in names}, 1, "t").axes[0]
    first, second, third, fourth = axes.get_yticks()
    assert third - second > second - first == fourth - third


GIB = 2**30
TARGET, DRAFT = ModelMemory(weights=128 * GIB, kv=16 * GIB, activations=0), ModelMemory(12 * GIB, 8 * GIB, 0)
PROFILE = MemoryProfile(8, 4096, 4, "bfloat16", TARGET, DRAFT, TARGET, 5, 1)


def test_weights_shrink_with_every_gpu_and_caches_up_to_the_number_of_key_value_heads() -> None:
    axes = fit_figure(PROFILE, 80 * GIB, heads=2, attention_heads=8).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2", "4", "8"]
    bars = {bar.get_label(): [patch.get_width() for patch in bar] for bar in axes.containers}  # type: ignore[attr-defined]
    assert bars["target's weights"] == [128, 64, 32, 16]
    assert bars["KV caches of both"] == [24, 12, 12, 12]  # replicated from four GPUs on
    assert "4 GPUs of 80 GiB hold both models" in axes.get_title(loc="left")
    assert "One node is too small" in fit_figure(PROFILE, 8 * GIB, 8, 64).axes[0].get_title(loc="left")
    alone = MemoryProfile(8, 4096, 4, "bfloat16", TARGET, None, TARGET, 5, 1)
    with pytest.raises(SpecdecError, match="profile"):
        fit_figure(alone, 80 * GIB, 8, 64)


def test_a_schedule_is_followed_as_requests_finish_and_leaves_the_text_alone(pair: sd.Pair) -> None:
    prompts = [[5 + i, 6, 7, 8] for i in range(5)]
    lengths = [6, 6, 6, 24, 24]
    rows, trace = run_schedule(pair, prompts, lengths, [[1, 2, 4], [3, 4, 2], [5, 64, 0]])
    alone = sd.generate_autoregressive(pair, prompts, max_new_tokens=24, sampling=sd.GREEDY)
    assert [tuple(row.new) for row in rows] == [one.tokens[:n] for one, n in zip(alone, lengths, strict=True)]
    assert trace[:7] == [(5, 0)] * 6 + [(2, 0)]  # k follows one round after the requests
    assert trace[7] == (2, 4)
    upper, lower = schedule_figure(trace).axes
    assert list(upper.lines[0].get_ydata()) == [requests for requests, _ in trace]
    assert list(lower.lines[0].get_ydata()) == [k for _, k in trace]
    with pytest.raises(SpecdecError, match="trace"):
        schedule_figure([])


def test_moving_a_slider_draws_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plotted, shown = [], []

    def draw(batch: int, alpha: float) -> Any:
        plotted.append((batch, alpha))
        return plotting.new_figure(f"{batch} {alpha}")[0]

    monkeypatch.setattr(production, "show", lambda widget, picture: shown.append(widget))
    explorer(draw, batch=[1, 8], alpha=[0.7, 0.1])
    sliders, _ = shown[0].children
    sliders.children[0].value = 8
    sliders.children[1].value = 0.1
    assert plotted == [(1, 0.7), (8, 0.7), (8, 0.1)]
    with pytest.raises(SpecdecError, match="controls"):
        explorer(draw)
