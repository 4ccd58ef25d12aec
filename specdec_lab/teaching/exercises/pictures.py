"""Figures that show the results of a learner's code, whether they are right or wrong."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from specdec_lab import plotting
from specdec_lab.teaching.exercises import beyond_one, deployment, fixing, judgement, memory, rule
from specdec_lab.teaching.exercises.deciding import shown_cases
from specdec_lab.teaching.exercises.exercise import Function, TooSlow, clean
from specdec_lab.teaching.exercises.judging import STUB, time_limit
from specdec_lab.teaching.exercises.outcomes import distribution
from specdec_lab.teaching.exercises.pictures_measured import (
    acceptance_figure,
    configuration_shown,
    measured_figure,
    speedup_of_figure,
)
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS, SECONDS_MEASURING = 10.0, 120.0


def picture(name: str, function: Any) -> Any:
    """The figure for a learner's function. Prints one line if there is none. Never raises."""
    seconds = SECONDS_MEASURING if name == "decode_speedup" else SECONDS
    try:
        if name not in DRAWINGS:
            raise SpecdecError(f"picture={name!r:.80}: takes one of {', '.join(DRAWINGS)}")
        with time_limit(seconds):
            return DRAWINGS[name](function)
    except SpecdecError as error:
        print(error)
    except NotImplementedError as error:  # PyTorch has some of its own
        stub = clean(error) in ("", STUB)
        message = f"No picture: NotImplementedError: {clean(error, 120)}"
        print("Nothing to show yet: write your code above and run this cell again." if stub else message)
    except TooSlow:
        print(f"No picture: your code did not finish within {seconds:.0f} seconds.")
    except Exception as error:
        print(f"No picture: {type(error).__name__}: {clean(error, 120)}")
    return None


@plotting.styled
def accept_figure(accepts: Function) -> "Figure":
    """The share of 1,000 values of u for which a token is accepted, against p/q."""
    u, ratios = torch.linspace(0, 0.999, 1000, dtype=torch.float64), torch.linspace(0.05, 2, 40, dtype=torch.float64)
    q = torch.full((1000,), 0.4, dtype=torch.float64)
    shares = [np.mean([bool(accepted) for accepted in accepts(q * r, q, u)]) for r in ratios]
    figure, axes = plotting.new_figure("How often your rule accepts a token", "p/q", "share accepted", height=3.0)
    axes.plot(ratios, ratios.clamp(max=1), "--", color=plotting.FORMULA, label="min(1, p/q)")
    axes.plot(ratios, shares, "o", color=plotting.ACCEPTED, markersize=4, label="yours")
    axes.legend()
    return figure


@plotting.styled
def residual_figure(residual: Function) -> "Figure":
    """Accepted tokens, and the learner's residual on top. Together they must reach p."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=torch.float64)
    accepted = torch.minimum(p, q)
    yours = torch.as_tensor(residual(p.clone(), q.clone()), dtype=torch.float64)
    replaced = (1 - accepted.sum()) * yours
    off = float((accepted + replaced - p).abs().max())
    message = (
        "Accepted + replaced is exactly p" if off < 1e-6 else f"Accepted + replaced differs from p by up to {off:.2f}"
    )
    figure, axes = plotting.new_figure(message, "token", "probability", height=3.2)
    at = np.arange(len(p))
    axes.bar(at, accepted, 0.6, color=plotting.ACCEPTED, label="accepted: min(p, q)")
    axes.bar(
        at, replaced, 0.6, bottom=accepted, color="white", edgecolor=plotting.REJECTED, hatch="xxx",
        label="rejected → your residual",
    )  # fmt: skip
    for i, height in enumerate(p.tolist()):
        axes.plot([i - 0.4, i + 0.4], [height] * 2, color=plotting.TARGET, linewidth=2.4, label="" if i else "p")
    axes.set_xticks(at, ["a", "b", "c", "d"])
    axes.legend()
    return figure


@plotting.styled
def speedup_figure(speedup: Function) -> "Figure":
    """The learner's formula against k, for three values of α."""
    figure, axes = plotting.new_figure("The speedup by your formula, at c = 0.1", "k", "speedup", height=3.0)
    for alpha, style in ((0.9, "-"), (0.7, "--"), (0.5, ":")):
        predicted = [float(speedup(alpha, k, 0.1, 1.0)) for k in range(1, 17)]
        axes.plot(range(1, 17), predicted, style, color=plotting.TARGET, label=f"α = {alpha}")
        best = int(np.argmax(predicted))
        axes.plot(best + 1, predicted[best], "o", color=plotting.ACCEPTED)
    axes.legend(title="● the best k")
    return figure


@plotting.styled
def rewind_figure(lengths_after: Function) -> "Figure":
    """Both caches after a round with 0 to 4 accepted tokens, and the end of the text."""
    cached, k = 6, 4
    figure, axes = plotting.new_figure(
        f"Your caches after a round: {cached} tokens cached before, k = {k}", "tokens in the cache", "", height=3.6
    )
    for accepted in range(k + 1):
        for at, (length, color) in enumerate(
            zip(lengths_after(cached, k, accepted), (plotting.TARGET, plotting.DRAFT), strict=True)
        ):
            label = ("target's", "draft's")[at] if accepted == 0 else ""
            axes.barh(-accepted - 0.18 + 0.36 * (1 - at), int(length), 0.32, color=color, label=label)
        text = cached + 2 + accepted
        label = "" if accepted else "end of the text"
        axes.plot([text] * 2, [-accepted - 0.4, -accepted + 0.4], color="black", linewidth=2, label=label)
    axes.set_yticks([-a for a in range(k + 1)], [f"{a} of {k} accepted" for a in range(k + 1)])
    axes.set_xlim(0, cached + k + 6)
    axes.legend(loc="center right")
    return figure


def _outcomes(probabilities: dict[Any, float], title: str, right: dict[Any, float] | None = None) -> "Figure":
    figure, axes = plotting.new_figure(title, "probability", "", height=max(2.6, 0.3 * len(probabilities) + 1.2))
    keys = sorted({*probabilities, *(right or {})}, key=str)
    for i, key in enumerate(keys):
        axes.barh(-i, probabilities.get(key, 0.0), 0.6, color=plotting.ACCEPTED, label="" if i else "yours")
        if right is not None:
            position = [right.get(key, 0.0)] * 2
            axes.plot(
                position, [-i - 0.4, -i + 0.4], color=plotting.TARGET, linewidth=2.4, label="" if i else "target's"
            )
    names = [" ".join(map(str, key)) if isinstance(key, tuple) else clean(key, 20) for key in keys]
    axes.set_yticks([-i for i in range(len(keys))], names)
    axes.legend()
    return figure


@plotting.styled
def step_figure(step: Function) -> "Figure":
    """Every outcome of a step for two drafted tokens 0 0, with its exact probability."""
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    q = torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64)
    probabilities = distribution(lambda chance: step(p.clone(), q.clone(), [0, 0], chance))
    return _outcomes(probabilities, "Drafted 0 0: what your step emits")


def findings_table(findings: Function) -> None:
    """Print the learner's answers with the lines of code."""
    for letter, bug in sorted(findings().items()):
        print(f"{letter}: {judgement.EXHIBITS.get(letter, '')}\n   {clean(bug)}")


@plotting.styled
def fixed_figure(fixed_round: Function) -> "Figure":
    """The distribution of the next three tokens: of the fixed round, of the broken round, and of the target."""
    case = fixing.cases(0)[1]
    yours, broken, right = (fixing.next_tokens(f, case) for f in (fixed_round, fixing.broken_round, fixing.fixed_round))
    figure = _outcomes(yours, "The next three tokens after your rounds", right)
    axes = figure.axes[0]
    for i, key in enumerate(sorted({*yours, *right}, key=str)):
        axes.plot(broken.get(key, 0.0), -i, "x", color=plotting.REJECTED, label="" if i else "broken round's")
    axes.legend()
    return figure


@plotting.styled
def power_figure(is_consistent: Function) -> "Figure":
    """The share of samplers that the learner's test rejects, for a correct sampler and a slightly wrong one."""
    draw, claimed, samples = np.random.default_rng(0).multinomial, [0.6, 0.3, 0.09, 0.01], (100, 1_000, 10_000, 100_000)
    figure, axes = plotting.new_figure(
        "Which samplers your test rejects", "samples", "share rejected, of 100", height=3.0
    )
    for words, really, style, color in (
        ("a correct sampler", claimed, "o-", plotting.ACCEPTED),
        ("a sampler with errors up to 0.04", [0.56, 0.32, 0.1, 0.02], "s--", plotting.REJECTED),
    ):
        shares = [np.mean([not is_consistent(c.tolist(), claimed) for c in draw(n, really, size=100)]) for n in samples]
        axes.plot(samples, shares, style, color=color, label=words)
    axes.set_xscale("log")
    axes.set_ylim(-0.05, 1.1)
    axes.legend()
    return figure


@plotting.styled
def decode_figure(decode: Function) -> "Figure":
    """The exact distribution of two tokens, and that of the target."""
    noise = torch.Generator().manual_seed(1)
    target, draft = (torch.randn(2, 2, 2, generator=noise, dtype=torch.float64) * 1.5).softmax(-1)
    probabilities = distribution(lambda chance: decode(target.clone(), draft.clone(), 0, 2, 2, chance))
    right = {(a, b): float(target[0, a] * target[a, b]) for a in range(2) for b in range(2)}
    return _outcomes(probabilities, "Your first two tokens", right)


@plotting.styled
def draft_figure(best_draft: Function) -> "Figure":
    """The speedup against k of the drafts in this repository, and the learner's choice."""
    drafts = {"small": (0.62, 0.09), "medium": (0.74, 0.13), "large": (0.78, 0.2)}
    name, k = best_draft(dict(drafts), 0.1)
    figure, axes = plotting.new_figure(f"You choose: {clean(name, 20)}, k = {int(k)}", "k", "speedup", height=3.2)
    for (draft, (alpha, c)), style in zip(drafts.items(), (":", "-", "--"), strict=True):
        gains = [rule.speedup(alpha, n, c, 1 + 0.1 * n) for n in range(1, 9)]
        axes.plot(range(1, 9), gains, style, color=plotting.DRAFT, label=draft)
        if draft == name and 1 <= int(k) <= 8:
            axes.plot(int(k), gains[int(k) - 1], "o", color=plotting.ACCEPTED, markersize=11, label="your choice")
    axes.axhline(1, color=plotting.FORMULA, linestyle="--", linewidth=1)
    axes.legend(ncols=2)
    return figure


@plotting.styled
def adaptive_figure(choose_k: Function) -> "Figure":
    """k in each round of a stream that is easy, then useless, then easy again; and the k of the heuristic."""
    case = next(case for case in deployment.stream_cases(0) if case.words == "easy, useless, easy")
    yours, heuristic = (deployment.play(f, case) for f in (choose_k, deployment.Heuristic()))
    figure, axes = plotting.new_figure(
        f"Yours {yours.speedup:.2f}×, the threshold heuristic's {heuristic.speedup:.2f}×",
        "round",
        "tokens drafted, k",
        height=3.2,
    )
    axes.step(range(len(heuristic.ks)), heuristic.ks, "--", color=plotting.DRAFT, label="threshold heuristic")
    axes.step(range(len(yours.ks)), yours.ks, "-", color=plotting.TARGET, label="yours")
    alphas = case.arguments[0]
    for i in range(1, len(alphas)):
        if alphas[i] != alphas[i - 1]:
            axes.axvline(i, color="black", linewidth=0.8)
            axes.text(i + 1, 9.2, f"α = {alphas[i]:g}", fontsize=9)
    axes.text(1, 9.2, f"α = {alphas[0]:g}", fontsize=9)
    axes.set_ylim(-0.4, 10.2)
    axes.set_yticks(range(0, deployment.MAX_K + 1, 2))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@plotting.styled
def memory_figure(memory_bytes: Function) -> "Figure":
    """GiB without and with a draft, for three batch sizes."""
    large, small, batches = memory.SHAPES["70B"], memory.SHAPES["7B"], (1, 8, 32)
    figure, axes = plotting.new_figure("70B with a 7B draft, 4,096 tokens each", "sequences", "GiB", height=3.2)
    for offset, (words, draft, hatch) in enumerate((("without a draft", None, ""), ("with the draft", small, "//"))):
        taken = [float(memory_bytes(dict(large), draft and dict(draft), b, 4096, 4)) / 2**30 for b in batches]
        color = plotting.DRAFT if draft else plotting.TARGET
        bars = axes.bar(np.arange(3) + 0.4 * offset - 0.2, taken, 0.38, color=color, hatch=hatch, label=words)
        axes.bar_label(bars, [f"{x:.0f}" for x in taken], fontsize=9)
    axes.set_xticks(range(3), [str(b) for b in batches])
    axes.legend(loc="upper left")
    return figure


@plotting.styled
def decide_figure(draft_tokens: Function) -> "Figure":
    """The measured speedups of k = 0, 2 and 4 in the shown cases, and the learner's decision."""
    names = "batch", "context", "alpha", "c", "v3", "v5"
    figure, axes = plotting.new_figure("Measured speedup of each k, and your choice", "", "speedup", height=3.6)
    lowest, highest = 1.0, 1.0
    for i, case in enumerate(shown_cases()):
        k = int(draft_tokens(int(case["batch"]), int(case["context"]), *(case[n] for n in names[2:])))
        measured = {0: 1.0, 2: case["speedup at k = 2"], 4: case["speedup at k = 4"]}
        lowest, highest = min(lowest, *measured.values()), max(highest, *measured.values())
        positions = {
            measured_k: i + (measured_k - 2) * 0.14 for measured_k in measured
        }  # side by side, so that equal speedups do not overlap
        for measured_k, speedup in measured.items():
            axes.text(positions[measured_k], speedup, str(measured_k), ha="center", va="center", fontsize=9)
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.8, "color": plotting.ACCEPTED}
        axes.plot(positions.get(k, i), measured.get(k, np.nan), "o", label="" if i else "your k", **ring)
    labels = [f"batch {case['batch']:.0f}\nα {case['alpha']}" for case in shown_cases()]
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_ylim(lowest - 0.1, highest + 0.1)
    axes.legend()
    return figure


@plotting.styled
def block_figure(block_round: Function) -> "Figure":
    """Accepted tokens per round of the learner's rule against the token-wise rule, for 15 random pairs, k = 2."""
    tokenwise, yours = [], []
    for seed in range(15):
        p, q = beyond_one.random_tables(seed, k=2)
        tokenwise.append(beyond_one.accepted_tokens(beyond_one.token_round, p, q))
        yours.append(beyond_one.accepted_tokens(block_round, p, q))
    better = sum(mine > theirs + 1e-9 for mine, theirs in zip(yours, tokenwise, strict=True))
    figure, axes = plotting.new_figure(
        f"Your rule accepts more than the token-wise rule in {better} of {len(yours)} pairs",
        "accepted of 2 drafted tokens, token-wise rule",
        "accepted, your rule",
        height=3.4,
    )
    limits = [min(tokenwise) - 0.05, max(tokenwise) + 0.05]
    axes.plot(limits, limits, "--", color=plotting.FORMULA, label="equal")
    axes.plot(tokenwise, yours, "o", color=plotting.ACCEPTED, label="one pair of p and q")
    axes.legend()
    return figure


@plotting.styled
def candidates_figure(emit_one: Function) -> "Figure":
    """The distribution of the emitted token when both candidates are sampled from q, against p."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=torch.float64)
    probabilities = distribution(
        lambda chance: [emit_one(p.clone(), q.clone(), [chance.draw(q), chance.draw(q)], chance)]
    )
    shares = [probabilities.get((token,), 0.0) for token in range(len(p))]
    off = max(abs(share - float(x)) for share, x in zip(shares, p, strict=True))
    message = (
        "The emitted token has exactly p" if off < 1e-6 else f"The emitted token differs from p by up to {off:.2f}"
    )
    figure, axes = plotting.new_figure(message, "token", "probability", height=3.2)
    at = np.arange(len(p))
    axes.bar(at - 0.15, shares, 0.3, color=plotting.ACCEPTED, label="emitted")
    axes.bar(at + 0.15, q, 0.3, color=plotting.DRAFT, label="q")
    for i, height in enumerate(p.tolist()):
        axes.plot([i - 0.4, i + 0.4], [height] * 2, color=plotting.TARGET, linewidth=2.4, label="" if i else "p")
    axes.set_xticks(at, ["a", "b", "c", "d"])
    axes.legend()
    return figure


def distances_table(counterexamples: Function) -> None:
    """The exact total variation of each sampler on the learner's counterexample."""
    for letter, pair in sorted(counterexamples().items()):
        if pair is None:
            print(f"{letter}: you answered lossless")
            continue
        p, q = pair
        print(f"{letter}: total variation {beyond_one.distance(beyond_one.SAMPLERS[letter], p, q):.3f}")


DRAWINGS: dict[str, Callable[[Any], Any]] = {
    "accept": accept_figure,
    "residual": residual_figure,
    "speedup": speedup_figure,
    "rewind": rewind_figure,
    "step": step_figure,
    "find_bug": findings_table,
    "fix": fixed_figure,
    "equivalence_test": power_figure,
    "decode": decode_figure,
    "speedup_of": speedup_of_figure,
    "decode_speedup": measured_figure,
    "vllm_config": configuration_shown,
    "acceptance": acceptance_figure,
    "best_draft": draft_figure,
    "adaptive_k": adaptive_figure,
    "memory": memory_figure,
    "decide": decide_figure,
    "block": block_figure,
    "candidates": candidates_figure,
    "lossless": distances_table,
}
