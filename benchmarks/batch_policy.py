"""Measure for which batch sizes and contexts drafting pays on this machine, and test the policy.

    python benchmarks/batch_policy.py [--quick] [--draft NAME] [--json FILE]

1. Measure the policy (specdec_lab.measurement.policy).
2. For each batch size and context, with other seeds, measure the generated tokens per second of three methods in turn:
   k = 0, the policy, and fixed thresholds (specdec_lab.teaching.heuristics).

The policy promises at least 0.97 of the speed of k = 0 in every cell. A cell breaks the promise if its whole 95 %
interval is below 0.97. The smallest median over all cells is reported as well.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import specdec_ref as sd
from specdec_lab.measurement.benchmark_workload import prompts_of_length
from specdec_lab.measurement.intervals import quantile_interval
from specdec_lab.measurement.policy import BATCHES, CONTEXTS, KS, SpeculationPolicy, measure_policy
from specdec_lab.measurement.policy_cells import Cell
from specdec_lab.measurement.rounds import Bench, TimedRounds, tokens_needed
from specdec_lab.measurement.suite_result import DASH
from specdec_lab.measurement.tables_shown import rich_table
from specdec_lab.teaching.heuristics import get_optimal_speculation_config

ROOT = Path(__file__).parents[1]
PROMISE = 0.97
THRESHOLDS = "fixed thresholds"
QUICK = {"batches": (1, 4, 16), "contexts": (64, 256), "ks": (0, 2, 4)}
FULL = {"batches": BATCHES, "contexts": CONTEXTS, "ks": KS}

OnStep = Callable[[str, int, int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes, contexts and k")
    parser.add_argument("--batches", type=numbers, help="batch sizes, for instance 1,2,4")
    parser.add_argument("--contexts", type=numbers, help="context lengths in tokens, for instance 64,512")
    parser.add_argument("--ks", type=numbers, help="drafted tokens to compare, for instance 0,2,4")
    parser.add_argument("--turns", type=int, default=9, help="turns of each k in each cell (9)")
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds in a turn (4)")
    parser.add_argument("--checks", type=int, default=15, help="turns of the check of the promise (15)")
    parser.add_argument("--draft", default=None, help="another draft: a shipped name or a folder")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "batch_policy.json")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    console = Console()
    pair = sd.load_pair(draft=arguments.draft, device=arguments.device)
    grid = dict(QUICK if arguments.quick else FULL)
    grid |= {name: getattr(arguments, name) for name in grid if getattr(arguments, name)}
    sampling = sd.Sampling()
    began = time.perf_counter()
    with steps(console, "measuring") as on_step:
        policy = measure_policy(
            pair, **grid, sampling=sampling, turns=arguments.turns, rounds=arguments.rounds, on_step=on_step
        )
    console.print(policy, "")
    with steps(console, "checking") as on_step:
        checks = check(pair, policy, sampling, arguments.checks, arguments.rounds, on_step)
    console.print(rich_table("tokens per second, times those of k = 0", *table(checks)), "")
    summary = summarize(checks)
    for name, value in summary.items():
        console.print(f"  {name:64}{value:.3f}" if isinstance(value, float) else f"  {name:64}{value}")
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "seconds": time.perf_counter() - began,
        "verdict": summary,
        "checks": checks,
        "vllm": policy.to_vllm(),
        "policy": policy.to_json(),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"\nwritten to {arguments.json}")


def numbers(text: str) -> tuple[int, ...]:
    """1,2,4 → (1, 2, 4)."""
    return tuple(int(part) for part in text.split(","))


def check(
    pair: sd.Pair, policy: SpeculationPolicy, sampling: sd.Sampling, turns: int, rounds: int, on_step: OnStep
) -> list[dict[str, Any]]:
    """For each cell, the tokens per second of the policy and of the fixed thresholds, relative to k = 0."""
    lines = []
    for i, cell in enumerate(policy.cells):
        on_step(f"batch {cell.batch}, context {cell.context}", i, len(policy.cells))
        ran = alternate(pair, policy, cell, sampling, turns, rounds)
        threshold_k = get_optimal_speculation_config(cell.batch, cell.context)["num_speculative_tokens"]
        line: dict[str, Any] = {"batch": cell.batch, "context": cell.context, "k": cell.k, "threshold_k": threshold_k}
        for name in ("policy", THRESHOLDS):
            ratios = [t[name].tokens_per_second / t["k = 0"].tokens_per_second for t in ran]
            pooled = pace([t[name] for t in ran]) / pace([t["k = 0"] for t in ran])
            line[name] = {"median": median(ratios), "interval": quantile_interval(ratios, 0.5), "pooled": pooled}
        lines.append(line)
    return lines


def alternate(
    pair: sd.Pair, policy: SpeculationPolicy, cell: Cell, sampling: sd.Sampling, turns: int, rounds: int
) -> list[dict[str, TimedRounds]]:
    """All three methods on the same prompts, in turn. Small batches get different prompts in different turns."""
    threshold_k = get_optimal_speculation_config(cell.batch, cell.context)["num_speculative_tokens"]
    max_k = max(*policy.ks, threshold_k)
    begin = min(cell.context, pair.context - tokens_needed(rounds, max_k))
    sets = max(1, min(turns, 8 // cell.batch))
    prompts = prompts_of_length(pair.tokenizer, begin, cell.batch * sets)
    benches = [
        Bench(pair, prompts[s * cell.batch : (s + 1) * cell.batch], rounds=rounds, max_k=max_k, sampling=sampling)
        for s in range(sets)
    ]
    makers: dict[str, Callable[[], int | sd.Controller]] = {
        "k = 0": lambda: 0,
        "policy": lambda: policy.as_controller(cell.batch, min(begin, cell.context)),
        THRESHOLDS: lambda: threshold_k,
    }
    names = list(makers)
    for name in names:
        benches[0].time_rounds(makers[name](), seed=0)  # untimed
    ran = []
    for t in range(turns):
        order = names[t % 3 :] + names[: t % 3]
        ran.append({name: benches[t % sets].time_rounds(makers[name](), seed=1000 + t) for name in order})
    return ran


def pace(ran: list[TimedRounds]) -> float:
    """All tokens / all seconds."""
    return sum(p.tokens for p in ran) / sum(p.seconds for p in ran)


def summarize(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """The cells that break the promise, and the smallest and mean speedup of both methods."""

    def mean(name: str) -> float:
        return sum(line[name]["median"] for line in checks) / len(checks)

    def broken(name: str) -> int:
        return sum(line[name]["interval"] is not None and line[name]["interval"][1] < PROMISE for line in checks)

    return {
        f"cells where the policy is below {PROMISE} of k = 0": broken("policy"),
        f"cells where fixed thresholds are below {PROMISE} of k = 0": broken(THRESHOLDS),
        "smallest median of the policy": min(line["policy"]["median"] for line in checks),
        "smallest median of fixed thresholds": min(line[THRESHOLDS]["median"] for line in checks),
        "mean over cells, policy": mean("policy"),
        "mean over cells, fixed thresholds": mean(THRESHOLDS),
    }


def table(checks: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """One line for each cell."""

    def words(speedup: dict[str, Any]) -> list[str]:
        interval = speedup["interval"]
        return [f"{speedup['median']:.2f}", f"{interval[0]:.2f}–{interval[1]:.2f}" if interval else DASH]

    columns = ["batch, context", "k", "policy", "95 %", "k", THRESHOLDS, "95 %"]
    rows = [
        [
            f"{c['batch']}, {c['context']}",
            str(c["k"]),
            *words(c["policy"]),
            str(c["threshold_k"]),
            *words(c[THRESHOLDS]),
        ]
        for c in checks
    ]
    return columns, rows


@contextmanager
def steps(console: Console, what: str) -> Iterator[OnStep]:
    columns = (TextColumn("{task.description:36}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda step, completed, total: bar.update(
            task, description=f"{what}: {step}", completed=completed, total=total
        )


if __name__ == "__main__":
    main()
