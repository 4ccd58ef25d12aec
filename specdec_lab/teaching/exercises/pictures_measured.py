"""Figures for the exercises on records: acceptance rates, speedups, and the configuration of vLLM."""

import json
import shlex
from typing import TYPE_CHECKING

import numpy as np

from specdec_lab import plotting
from specdec_lab.teaching.exercises import configuring
from specdec_lab.teaching.exercises.exercise import Function, clean
from specdec_lab.teaching.exercises.workload import KEPT, recorded_rounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@plotting.styled
def speedup_of_figure(speedup_of: Function) -> "Figure":
    """The tokens per second of six runs, and the speedup over all of them together."""
    plain, fast = [(64, 1.6), (64, 1.5), (20, 0.6)], [(64, 0.9), (64, 0.7), (9, 0.45)]
    message = float(speedup_of(list(plain), list(fast)))
    figure, axes = plotting.new_figure(
        f"Your result: a speedup of {message:.2f}", "prompt", "tokens per second", height=3.0
    )
    for offset, (words, runs, color) in enumerate(
        (("plain", plain, plotting.TARGET), ("speculative", fast, plotting.DRAFT))
    ):
        bars = axes.bar(np.arange(3) + 0.4 * offset - 0.2, [t / s for t, s in runs], 0.38, color=color, label=words)
        axes.bar_label(bars, [f"{tokens} in {seconds} s" for tokens, seconds in runs], fontsize=9)
    axes.margins(y=0.12)
    axes.set_xticks(range(3), ["1", "2", "3: ended early"])
    axes.legend(loc="upper right")
    return figure


def configuration_shown(vllm_config: Function) -> None:
    """Print the command line for the dictionary."""
    config = vllm_config("drafts/medium", 4)
    written = clean(json.dumps({**config}, ensure_ascii=False, default=str), 400)
    unknown = [clean(key, 40) for key in config if key not in configuring.TAKEN]
    print(f"vllm serve TARGET --speculative-config {shlex.quote(written)}")
    if unknown:
        print(f"vLLM rejects these keys: {', '.join(unknown)}")


@plotting.styled
def acceptance_figure(acceptance_rate: Function) -> "Figure":
    """The learner's acceptance rates of the recorded rounds, and accepted / drafted."""
    title = "Acceptance rates of our three drafts, from recorded rounds"
    figure, axes = plotting.new_figure(title, "k", "share", height=3.2)
    ks = sorted({k for _, k in KEPT})
    for draft, style in zip(("small", "medium", "large"), (":", "-", "--"), strict=True):
        yours = [float(acceptance_rate(recorded_rounds(draft, k))) for k in ks]
        drafted = [sum(a for _, a in recorded_rounds(draft, k)) / sum(k for _ in recorded_rounds(draft, k)) for k in ks]
        label = "accepted / drafted" if draft == "medium" else ""
        axes.plot(ks, drafted, style, color=plotting.FORMULA, linewidth=1, label=label)
        axes.plot(ks, yours, style, marker="o", color=plotting.ACCEPTED, label=f"yours, {draft}")
    axes.set_xticks(ks)
    axes.set_ylim(0, 1.05)
    axes.legend(ncols=2, loc="lower left")
    return figure


@plotting.styled
def measured_figure(measured_speedup: Function) -> "Figure":
    """The speedups that the learner's function measures with the pair in this repository, for several k."""
    from specdec_ref.loading import held_out_prompts, load_pair

    pair, prompts = load_pair(), list(held_out_prompts().values())[:2]
    gains = {k: float(measured_speedup(pair, prompts, k)) for k in (2, 4, 8)}
    best = max(gains, key=lambda k: gains[k])
    figure, axes = plotting.new_figure(f"Measured: {gains[best]:.2f}× at k = {best}", "k", "speedup", height=3.0)
    axes.plot(list(gains), list(gains.values()), "o-", color=plotting.ACCEPTED, label="yours")
    axes.axhline(1, color=plotting.FORMULA, linestyle="--", linewidth=1)
    axes.set_xticks(list(gains))
    return figure
