"""Compare the reference with the limits of a GPU. Writes one table and one JSON file.

    python benchmarks/gpu.py [--target 7B] [--draft 0.5B] [--json FILE]
    python benchmarks/gpu.py --small --device cpu          # the same code at small shapes; its figures mean nothing

On a synthetic pair (real shapes, costs and acceptance, but meaningless text; see synthetic.py) it measures

- memory bandwidth,
- the autoregressive step, run plainly, captured as CUDA graphs, and compiled; and the shortest time in which the
  weights can be read,
- c, and v(n) for n = 1 … 17 and batches of 1, 2, 4, … 64,
- the speedup over k and acceptance, next to the formula's,
- transformers' generate and assisted generation on the same models.

On the shipped pair it runs the empirical equivalence test in float32 and in bfloat16. The file is written after every
part.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from compare_peers import transformers_generate
from rich.console import Console
from rich.table import Table
from synthetic import SHAPES, Shape, Synthetic, dial, synthetic_pair

import specdec_ref as sd
from specdec_lab.equivalence.empirical import empirical
from specdec_lab.equivalence.engines import OurLoop
from specdec_lab.measurement.benchmark import ours, race
from specdec_lab.measurement.costs import WARM_UP, measure_costs
from specdec_lab.measurement.roofline import measure_limits, step_of
from specdec_ref.fast.steps import choose_steps
from specdec_ref.loading import usable_device
from specdec_ref.models import TransformersModel

RESULTS = Path(__file__).parent / "results" / "gpu.json"
BATCHES, SCORED = [1, 2, 4, 8, 16, 32, 64], list(range(1, 18))
SMALL = Shape(128, 6, 4, 2, 320, head=32), Shape(64, 2, 2, 1, 128, head=32)
GOALS = {
    "autoregressive / bandwidth floor": 0.75,
    "speedup / formula": 0.92,
    "ours / transformers assisted": 3.0,
}


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time, after a warm-up that is long enough for the step to be recorded or captured."""
    times = []
    for _ in range(WARM_UP + repeats):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times[WARM_UP:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device, mebibytes: int) -> dict[str, float]:
    """Bandwidth in bytes/s of a copy (read and write) and of reading alone. The larger is the limit for steps."""
    limits = measure_limits(device, torch.bfloat16, mebibytes=mebibytes)
    source = torch.ones(mebibytes * 2**19, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / seconds(lambda: target.copy_(source), device, 15)
    return {"copy": copy, "read": limits.bandwidth, "arithmetic": limits.arithmetic}


def ways(synthetic: Synthetic, limit: float, context: int, repeats: int) -> dict[str, Any]:
    """The time of a step of one token, run in each way, and its floor: the model's bytes / bandwidth."""
    pair = synthetic.pair
    floor = step_of(pair.target, 1).bytes / limit
    by_way: dict[str, Any] = {"floor": floor}
    kinds = ("plain", "graphs", "compiled") if pair.device.type == "cuda" else ("plain", "graphs")
    for way in kinds:
        for model in (pair.target, pair.draft):
            choose_steps(model, way)
        costs = measure_costs(pair, max_k=1, context=context, repeats=repeats)
        by_way[way] = {
            "target_step": costs.target_step,
            "draft_step": costs.draft_step,
            "c": costs.c,
            "of the floor": floor / costs.target_step,
        }
    for model in (pair.target, pair.draft):
        choose_steps(model, "auto")
    return by_way


def scoring(
    pair: sd.Pair, batches: list[int], ns: list[int], context: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Time of a step of the target over n tokens per row: batch → n → seconds."""
    model = TransformersModel(pair.target)
    generator = torch.Generator().manual_seed(0)
    by_batch: dict[str, dict[str, float]] = {}
    for batch in batches:
        model.start(batch, context + max(ns))
        rows = torch.randint(model.vocab_size, (batch, context), generator=generator)
        model.prefill(rows.tolist())
        by_batch[str(batch)] = {}
        for n in ns:
            tokens = rows[:, :n].to(model.device)

            def step(tokens: torch.Tensor = tokens, batch: int = batch) -> None:
                model.extend(tokens)
                model.rewind([context] * batch)

            by_batch[str(batch)][str(n)] = seconds(step, model.device, repeats)
    return by_batch


def speedups(
    synthetic: Synthetic, rates: list[float], ks: list[int], tokens: int, repeats: int, context: int
) -> list[dict[str, float]]:
    """Measured and predicted speedup for each acceptance rate and k, at temperature 1."""
    sampling = sd.Sampling()
    rows = []
    for rate in rates:
        synthetic = dial(synthetic, rate)
        pair = synthetic.pair
        costs = measure_costs(pair, max_k=max(ks), context=context + tokens // 2, repeats=7)
        everyone = {str(k): ours(pair, k, sampling, tokens) for k in (0, *ks)}
        results = race(everyone, prompts_for(pair, 2, context), baseline="0", repeats=repeats)
        for k in ks:
            result = results[str(k)]
            formula = sd.predicted_speedup(result.acceptance or 0.0, k, costs.c, costs.v(k + 1))
            rows.append(
                {
                    "dial": rate,
                    "k": k,
                    "acceptance": result.acceptance or 0.0,
                    "tokens_per_second": result.tokens_per_second,
                    "baseline": results["0"].tokens_per_second,
                    "speedup": result.speedup,
                    "formula": formula,
                    "of formula": result.speedup / formula,
                    "c": costs.c,
                    "v": costs.v(k + 1),
                }
            )
    return rows


def peers(synthetic: Synthetic, tokens: int, repeats: int, context: int, k: int) -> dict[str, Any]:
    """Our loop and transformers on the same models, in turn."""
    pair, sampling = synthetic.pair, sd.Sampling()
    contenders = {
        "ours, autoregressive": ours(pair, 0, sampling, tokens),
        f"ours, k = {k}": ours(pair, k, sampling, tokens),
        "transformers generate": transformers_generate(pair, sampling, tokens, None),
        f"transformers assisted, k = {k}": transformers_generate(pair, sampling, tokens, k),
        "transformers assisted, default": transformers_generate(pair, sampling, tokens, "default"),
    }
    results = race(contenders, prompts_for(pair, 2, context), baseline="ours, autoregressive", repeats=repeats)
    pace = {name: result.tokens_per_second for name, result in results.items()}
    best = max(pace[name] for name in pace if "assisted" in name)
    return {"tokens_per_second": pace, "ours / transformers assisted": pace[f"ours, k = {k}"] / best}


def equivalence(device: torch.device, samples: int, prompts: int) -> dict[str, Any]:
    """Test for both number types whether the shipped pair's samples follow the target."""
    by_dtype = {}
    texts = list(sd.held_out_prompts().values())[:prompts]
    for dtype in ("float32", "bfloat16"):
        pair = sd.load_pair(device=str(device), dtype=dtype)
        result = empirical(pair, OurLoop(pair, 4), texts, length=3, samples=samples)
        by_dtype[dtype] = {"consistent": result.consistent, "p": result.p_value, "samples": samples}
    return by_dtype


def prompts_for(pair: sd.Pair, count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(pair.target.config.vocab_size, (count, length), generator=generator).tolist()


def machine(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "shapes": "small: these figures mean nothing" if arguments.small else [arguments.target, arguments.draft],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="7B", choices=SHAPES, help="a named shape (7B)")
    parser.add_argument("--draft", default="0.5B", choices=SHAPES, help="a named shape (0.5B)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small shapes; only checks that it runs")
    parser.add_argument(
        "--json", type=Path, default=None, help="default benchmarks/results/gpu.json; none with --small"
    )
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("gpu.py: no CUDA GPU here; --small --device cpu runs the same code at small shapes")
    device = usable_device(arguments.device)
    if device.type != "cuda" and not arguments.small:
        raise SystemExit(f"gpu.py: shapes of billions are for a GPU, not for {device}; add --small")
    small = arguments.small
    file = arguments.json or (None if small else RESULTS)
    console = Console()
    report: dict[str, Any] = {"machine": machine(device, arguments)}
    began = time.perf_counter()

    def part(name: str, result: Any) -> Any:
        report[name] = result
        report["seconds"] = time.perf_counter() - began
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        console.print(f"{report['seconds']:6.0f} s  {name}", highlight=False)
        return result

    limits = part("bandwidth", bandwidth(device, 16 if small else 4096))
    limit = max(limits["copy"], limits["read"])
    shapes: dict[str, Any] = (
        {"target": SMALL[0], "draft": SMALL[1], "vocab_size": 211, "context": 512}
        if small
        else {
            "target": arguments.target,
            "draft": arguments.draft,
        }
    )
    synthetic = synthetic_pair(
        **shapes, acceptance=0.8, device=device, dtype=torch.float32 if small else torch.bfloat16
    )
    context, tokens, repeats = (32, 24, 1) if small else (256, 128, 2)
    part("synthetic", {"acceptance": synthetic.acceptance, "scale": synthetic.scale})
    steps = part("steps", ways(synthetic, limit, context, 5 if small else 15))
    batches, ns = ([1, 2], [1, 3]) if small else (BATCHES, SCORED)
    part("scoring", scoring(synthetic.pair, batches, ns, context, 3 if small else 7))
    compared = part("peers", peers(synthetic, tokens, repeats, context, 4))
    rates, ks = ([0.6], [2]) if small else ([0.6, 0.8, 0.9], [2, 4, 8])
    rows = part("speedups", speedups(synthetic, rates, ks, tokens, repeats, context))
    del synthetic
    if device.type == "cuda":
        torch.cuda.empty_cache()
    same = part(
        "equivalence",
        equivalence(device, *((1_000, 1) if small else (20_000, 4))),
    )
    reached = {
        "autoregressive / bandwidth floor": max(way["of the floor"] for way in steps.values() if isinstance(way, dict)),
        "speedup / formula": median(row["of formula"] for row in rows),
        "ours / transformers assisted": compared["ours / transformers assisted"],
    }
    part("ratios", reached)
    show(console, report, reached, same)
    if file is not None:
        console.print(f"written to {file}")


def step_table(steps: dict[str, Any]) -> Table:
    """The time of a step of one token, run in each way, and its ratio to the floor."""
    table = Table(title="a step of one token", title_justify="left", box=None, padding=(0, 3, 0, 0))
    for column in ("steps", "target, ms", "times the floor", "draft, ms", "c"):
        table.add_column(column, justify="left" if column == "steps" else "right")
    for way, costs in steps.items():
        if way != "floor":
            target, draft = costs["target_step"], costs["draft_step"]
            cells = f"{1000 * target:.3f}", f"{target / steps['floor']:.2f}", f"{1000 * draft:.3f}"
            table.add_row(way, *cells, f"{costs['c']:.3f}")
    return table


def speedup_table(report: dict[str, Any]) -> Table:
    """Measured and predicted speedup by acceptance and k."""
    table = Table(title=str(report["machine"]["device"]), title_justify="left", box=None, padding=(0, 3, 0, 0))
    for column in ("dial", "k", "accepted", "tokens/s", "speedup", "formula"):
        table.add_column(column, justify="right")
    for row in report["speedups"]:
        cells = [f"{row['dial']:.1f}", str(row["k"]), f"{row['acceptance']:.0%}", f"{row['tokens_per_second']:.0f}"]
        table.add_row(*cells, f"{row['speedup']:.2f}", f"{row['formula']:.2f}")
    return table


def show(console: Console, report: dict[str, Any], reached: dict[str, float], same: dict[str, Any]) -> None:
    """Print the results."""
    limits, steps = report["bandwidth"], report["steps"]
    for name, limit, unit in (
        ("memory bandwidth, copied", limits["copy"] / 1e9, "GB/s"),
        ("memory bandwidth, read", limits["read"] / 1e9, "GB/s"),
        ("arithmetic", limits["arithmetic"] / 1e12, "TFLOP/s"),
        ("floor of a step: the target's bytes / bandwidth", 1000 * steps["floor"], "ms"),
    ):
        console.print(f"  {name:52}{limit:8.2f} {unit}", highlight=False)
    console.print("")
    console.print(step_table(steps), "")
    console.print(speedup_table(report), "")
    for batch, times in report["scoring"].items():
        line = ", ".join(f"v({n}) = {t / times['1']:.2f}" for n, t in times.items())
        console.print(f"batch {batch}: step {1000 * times['1']:.2f} ms, {line}", highlight=False, soft_wrap=True)
    for name, pace in report["peers"]["tokens_per_second"].items():
        console.print(f"  {name:52}{pace:8.1f} tokens/s", highlight=False)
    for name, value in reached.items():
        console.print(f"  {name:52}{value:8.2f}   goal {GOALS[name]}", highlight=False)
    for dtype, tested in same.items():
        outcome = "consistent" if tested["consistent"] else "NOT consistent"
        console.print(f"  equivalence in {dtype:38}{outcome}, p = {tested['p']:.2g}", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except sd.SpecdecError as error:
        raise SystemExit(f"gpu.py: {error}") from None
