"""Are the stated rates of the empirical test true? Simulated on the outcomes of the pair that ships, with fixed seeds.

    python benchmarks/equivalence_calibration.py [--simulations 100000] [--samples 100000] [--json FILE]

Counts are sampled directly from the outcomes' probabilities, so only the statistics are tested: how often
a right sampler is refuted, whether its p-values are uniform, how often a sampler of the detectable total variation is
found in the worst direction and in others, and how often the interval holds the true total variation. About four
minutes.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from scipy import stats

import specdec_ref as sd
from specdec_lab.cli.equivalence_command import PROMPT_TOKENS
from specdec_lab.equivalence.empirical import POWER, SamplingPlan, prepare
from specdec_lab.equivalence.outcome_tree import pool
from specdec_lab.equivalence.result import CONFIDENCE
from specdec_lab.equivalence.statistics import detectable_tv, fit, tv_interval

Numbers = NDArray[np.float64]
Direction = str
"""worst: all outcomes by the same factor, half of the mass up, half down. one: only the most likely one grows."""


def shifted(p: Numbers, tv: float, direction: Direction, rng: np.random.Generator) -> Numbers:
    """p moved by `tv`."""
    order = rng.permutation(len(p))
    if direction == "one":
        up = np.arange(len(p)) == np.argmax(p)
    else:
        up = np.zeros(len(p), dtype=bool)
        up[order[: max(1, np.searchsorted(np.cumsum(p[order]), 0.5))]] = True
    if p[~up].sum() <= tv:  # an outcome cannot lose more probability than it has
        up = ~up
    return np.where(up, p * (1 + tv / p[up].sum()), p * (1 - tv / p[~up].sum()))


def rate(count: int, of: int) -> dict[str, float]:
    """A share with its 95 % interval (Clopper and Pearson)."""
    interval = stats.binomtest(count, of).proportion_ci()
    return {"share": count / of, "low": float(interval.low), "high": float(interval.high), "simulations": of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=100_000, help="of the right sampler (100000)")
    parser.add_argument("--samples", type=int, default=100_000, help="in each simulated test (100000)")
    parser.add_argument("--prompts", type=int, default=4, help="held-out prompts (4)")
    parser.add_argument("--target", default=None, help="another target: a folder or a hub name")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "equivalence_calibration.json")
    arguments = parser.parse_args()
    began = time.perf_counter()
    console = Console()
    pair = sd.load_pair(arguments.target, device="cpu")
    texts = list(sd.held_out_prompts().values())[: arguments.prompts]
    prompts = [pair.tokenizer(text)["input_ids"][:PROMPT_TOKENS] for text in texts]
    plan = prepare(pair, prompts, samples=arguments.samples)
    console.print(plan.explain())
    report = {"samples": arguments.samples, "prompts": len(prompts), "outcomes": plan.outcomes} | simulate(
        console, plan, arguments.simulations
    )
    report["seconds"] = round(time.perf_counter() - began)
    console.print_json(json.dumps(report))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {arguments.json}")


def simulate(console: Console, plan: SamplingPlan, simulations: int) -> dict[str, object]:
    """Everything, as a report. A fiftieth of the simulations for each question about a wrong sampler."""
    rng = np.random.default_rng(0)
    p = [pool(tree, n).probabilities for tree, n in zip(plan.trees, plan.samples, strict=True)]
    freedom = sum(len(each) - 1 for each in p)
    some = max(10, simulations // 50)

    def draw(q: list[Numbers], share: float = 1.0) -> list[NDArray[np.int64]]:
        return [rng.multinomial(round(n * share), each) for n, each in zip(plan.samples, q, strict=True)]

    total, began = simulations + 4 * some + 5 * some, time.perf_counter()
    for _ in range(10):
        fit(draw(p), p)
    console.print(f"{total:,} simulated tests, about {(time.perf_counter() - began) / 10 * total:.0f} s")
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("right sampler", total=total)
        p_values = np.empty(simulations)
        for i in range(simulations):
            p_values[i] = fit(draw(p), p).p_value
            bar.advance(task)
        detected: dict[str, object] = {}
        for name, factor, direction in (
            ("detectable TV, worst direction", 1.0, "worst"),
            ("detectable TV, one outcome", 1.0, "one"),
            ("half of it, worst direction", 0.5, "worst"),
            ("twice it, worst direction", 2.0, "worst"),
        ):
            bar.update(task, description=name)
            count = 0
            for _ in range(some):
                wrong = [shifted(each, factor * plan.detectable, direction, rng) for each in p]
                count += fit(draw(wrong), p).p_value < plan.false_alarm
                bar.advance(task)
            detected[name] = rate(count, some)
        held: dict[str, object] = {}
        for factor, direction in ((0.0, "worst"), (1.0, "worst"), (1.0, "one"), (4.0, "worst"), (4.0, "one")):
            name = f"TV {factor * plan.detectable:.4f}, {direction if factor else 'right sampler'}"
            bar.update(task, description=name)
            inside, widths = 0, []
            for _ in range(some):
                wrong = [shifted(each, factor * plan.detectable, direction, rng) for each in p]
                low, high = tv_interval(draw(wrong, 0.5), draw(wrong, 0.5), p, CONFIDENCE)
                inside += low - 1e-12 <= factor * plan.detectable <= high
                widths.append((low, high))
                bar.advance(task)
            low, high = np.mean(widths, axis=0)
            held[name] = rate(inside, some) | {"mean low": float(low), "mean high": float(high)}
    alarms = {str(a): rate(int((p_values < a).sum()), simulations) for a in (0.05, 0.01, plan.false_alarm)}
    return {
        "degrees_of_freedom": freedom,
        "false alarms, by stated rate": alarms,
        "p-values uniform (Kolmogorov-Smirnov p)": float(stats.kstest(p_values, "uniform").pvalue),
        "detectable_tv": detectable_tv(sum(plan.samples), freedom, plan.false_alarm, POWER),
        "stated_power": POWER,
        "found": detected,
        "stated_coverage": CONFIDENCE,
        "interval holds the true TV": held,
    }


if __name__ == "__main__":
    main()
