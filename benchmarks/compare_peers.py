"""Our decoding beside transformers' own, on the pair that ships: one process, in turn, medians of ratios.

    python benchmarks/compare_peers.py [--tokens 160] [--repeats 3] [--prompts 6] [--json FILE]

The same models, prompts, lengths and sampling for all. transformers' assisted generation runs at its defaults and with
the number of assistant tokens fixed (constant schedule, no confidence threshold), which is set on the assistant's
generation_config: set on the target it is ignored.
"""

import argparse
import copy
import json
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import specdec_ref as sd
from specdec_lab.measurement.benchmark import Contender, Result, Sample, ours, race, race_length
from specdec_lab.measurement.costs import Costs, measure_costs


def transformers_generate(
    pair: sd.Pair, sampling: sd.Sampling, tokens: int, assistant_k: int | str | None
) -> Contender:
    """transformers' `generate`; assistant_k: None (no assistant), 'default', or a fixed number of assistant tokens."""
    options: dict[str, object] = {"max_new_tokens": tokens, "do_sample": not sampling.greedy, "pad_token_id": 0}
    if not sampling.greedy:
        options |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    assistant = None
    if assistant_k is not None:
        assistant = copy.copy(pair.draft)
        assistant.generation_config = copy.deepcopy(pair.draft.generation_config)
        if assistant_k != "default":
            assistant.generation_config.num_assistant_tokens = assistant_k
            assistant.generation_config.num_assistant_tokens_schedule = "constant"
            assistant.generation_config.assistant_confidence_threshold = 0.0

    def run(prompt: list[int], seed: int) -> Sample:
        torch.manual_seed(seed)
        ids = torch.tensor([prompt], device=pair.device)
        began = time.perf_counter()
        out = pair.target.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, **options)
        if pair.device.type == "cuda":
            torch.cuda.synchronize()
        return Sample(tuple(out[0, len(prompt) :].tolist()), time.perf_counter() - began)

    return run


def contenders(pair: sd.Pair, sampling: sd.Sampling, tokens: int) -> dict[str, Contender]:
    """Everyone who runs, by name."""
    everyone = {"ours, one by one": ours(pair, 0, sampling, tokens)}
    everyone |= {f"ours, k = {k}": ours(pair, k, sampling, tokens) for k in range(1, 9)}
    everyone["transformers generate"] = transformers_generate(pair, sampling, tokens, None)
    everyone["transformers assisted, default"] = transformers_generate(pair, sampling, tokens, "default")
    for k in (3, 4, 5):
        everyone[f"transformers assisted, k = {k}"] = transformers_generate(pair, sampling, tokens, k)
    return everyone


def ratio(results: dict[str, Result], name: str, other: str) -> float:
    """Median over prompts and repeats of name's pace / other's pace, each pair on the same prompt and repeat."""
    pairs = zip(results[name].samples, results[other].samples, strict=True)
    return median((len(a.tokens) / a.seconds) / (len(b.tokens) / b.seconds) for a, b in pairs)


def summary(results: dict[str, Result], costs: Costs) -> dict[str, object]:
    """The ratios that the project sets itself as goals."""
    best = max((n for n in results if n.startswith("ours, k")), key=lambda n: results[n].speedup)
    peer = max((n for n in results if "assisted" in n), key=lambda n: results[n].speedup)
    k = int(best.split("=")[1])
    alpha = results[best].acceptance or 0.0
    predicted = sd.predicted_speedup(alpha, k, costs.c, costs.v(k + 1))
    return {
        "autoregressive / transformers generate": ratio(results, "ours, one by one", "transformers generate"),
        "best k": k,
        "best k / autoregressive": results[best].speedup,
        "best of transformers assisted": peer.removeprefix("transformers assisted, "),
        "best k / best of transformers assisted": ratio(results, best, peer),
        "acceptance": alpha,
        "formula": predicted,
        "measured / formula": results[best].speedup / predicted,
        "measured / formula with measured tokens per round": results[best].speedup
        / ((results[best].tokens_per_round or 1.0) / (k * costs.c + costs.v(k + 1))),
        "repeated text": results[best].repeated_share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=160, help="new tokens per generation (160)")
    parser.add_argument("--prompts", type=int, default=6, help="held-out prompts (6)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each on each prompt (3)")
    parser.add_argument("--draft", default=None, help="another draft: a shipped name or a folder")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "compare_peers.json")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    console = Console()
    pair = sd.load_pair(draft=arguments.draft, device=arguments.device)
    prompts = [pair.tokenizer(text)["input_ids"] for text in list(sd.held_out_prompts().values())[: arguments.prompts]]
    report: dict[str, Any] = {"machine": machine(pair), "arguments": {**vars(arguments), "json": None}, "modes": {}}
    for mode, sampling in (("temperature 1", sd.Sampling()), ("greedy", sd.GREEDY)):
        results, costs = compare(console, pair, prompts, mode, sampling, arguments)
        ratios = summary(results, costs)
        console.print(table(mode, results), "")
        for name, value in ratios.items():
            console.print(f"  {name:52}{value:.3f}" if isinstance(value, float) else f"  {name:52}{value}")
        console.print(f"  c = {costs.c:.4f}, v(2…9) = {', '.join(f'{costs.v(n):.2f}' for n in range(2, 10))}\n")
        report["modes"][mode] = {
            "ratios": ratios,
            "costs": {"target_step": costs.target_step, "c": costs.c, "v": {n: costs.v(n) for n in costs.scoring}},
            "contenders": {
                n: {
                    key: getattr(r, key)
                    for key in ("tokens_per_second", "speedup", "acceptance", "tokens_per_round", "repeated_share")
                }
                for n, r in results.items()
            },
        }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {arguments.json}")


def compare(
    console: Console,
    pair: sd.Pair,
    prompts: list[list[int]],
    mode: str,
    sampling: sd.Sampling,
    arguments: argparse.Namespace,
) -> tuple[dict[str, Result], Costs]:
    """One mode of sampling: step times, then everyone in turn."""
    everyone = contenders(pair, sampling, arguments.tokens)
    total = race_length(len(everyone), len(prompts), arguments.repeats) + 16
    with Progress(TextColumn("{task.description:48}"), BarColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(f"{mode}: step times", total=total)
        costs = measure_costs(pair, sampling=sampling, context=240, on_step=lambda: bar.advance(task))
        results = race(
            everyone,
            prompts,
            baseline="ours, one by one",
            repeats=arguments.repeats,
            on_sample=lambda name: bar.update(task, advance=1, description=f"{mode}: {name}"),
        )
    return results, costs


def table(mode: str, results: dict[str, Result]) -> Table:
    """One line per contender."""
    lines = Table(title=mode, title_justify="left", box=None, padding=(0, 2, 0, 0))
    lines.add_column("", justify="left", no_wrap=True)
    for column in ("tokens\nper s", "speedup", "accepted", "tokens\nper round", "repeated\ntext"):
        lines.add_column(column, justify="right")
    for r in results.values():
        lines.add_row(
            r.name,
            f"{r.tokens_per_second:.0f}",
            f"{r.speedup:.2f}",
            "" if r.acceptance is None else f"{r.acceptance:.0%}",
            "" if r.tokens_per_round is None else f"{r.tokens_per_round:.2f}",
            f"{r.repeated_share:.0%}",
        )
    return lines


def machine(pair: sd.Pair) -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name()
        if pair.device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(pair.target.dtype),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
