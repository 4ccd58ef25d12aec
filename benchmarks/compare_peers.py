"""Every drafting method of ours next to transformers' own decoding, on the pair that ships: one process, in turn,
medians of ratios.

    python benchmarks/compare_peers.py [--tokens 160] [--repeats 3] [--prompts 6] [--json FILE]

The same target, prompts, lengths and sampling for all, and the same weights in the same layout. transformers' assisted
generation runs at its defaults and with the number of assistant tokens fixed (constant schedule, no confidence
threshold), which is set on the assistant's generation_config: set on the target it is ignored. About 16 minutes on two
cores with nothing else running.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import specdec_ref as sd
from specdec_lab.measurement.benchmark import Contender, Result, Sample, formula, ours, race, race_length
from specdec_lab.measurement.costs import WARM_UP, Costs, measure_costs
from specdec_lab.measurement.memory_peak import AddedMemory, added_memory
from specdec_lab.measurement.methods import METHODS, TREE, usual_k, with_method


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


@dataclass(frozen=True)
class Way:
    """One of our ways to decode.

    Attributes:
        method: what drafts, one of `METHODS`; 'none' is autoregressive decoding.
        k: tokens drafted per round, or levels of a tree.
        verification: 'token' or 'block'.
    """

    method: str
    k: int
    verification: str = "token"

    @property
    def name(self) -> str:
        """As in the table. A draft model with token verification has no further words."""
        if self.method == "none":
            return AUTOREGRESSIVE
        own_words = {"draft": "", "parallel-head": "parallel head, ", "lookup": "prompt lookup, "}
        method = own_words.get(self.method, f"{self.method}, ")
        return f"ours, {method}{'block, ' if self.verification == 'block' else ''}k = {self.k}"


AUTOREGRESSIVE = "ours, autoregressive"
BLOCK_K = 6
"""The k at which block and token verification are compared."""


def our_ways(greedy: bool, parallel: int) -> list[Way]:
    """All of ours. At temperature 0 both verification rules decide alike, so there are no blocks.

    parallel: tokens that the parallel head drafts.
    """
    ways = [Way("none", 0), *(Way("draft", k) for k in range(1, 9))]
    heads = [Way("head", k) for k in (4, 6, 8)]
    if not greedy:
        ways += [Way("draft", k, "block") for k in (4, BLOCK_K)]
        heads += [Way("head", k, "block") for k in (4, 6, 8)]
    ways += [*heads, Way("parallel-head", parallel, "token" if greedy else "block")]
    return [*ways, *(Way(name, TREE["depth"]) for name in ("tree", "head-tree")), Way("lookup", 4), Way("suffix", 8)]


def contenders(pairs: dict[str, sd.Pair], ways: list[Way], sampling: sd.Sampling, tokens: int) -> dict[str, Contender]:
    """All contenders by name. pairs: by method."""
    by_name = {way.name: ours(pairs[way.method], way.k, sampling, tokens, way.verification) for way in ways}
    by_name["transformers generate"] = transformers_generate(pairs["draft"], sampling, tokens, None)
    for k in ("default", 4, 5):
        name = f"transformers assisted, {k if k == 'default' else f'k = {k}'}"
        by_name[name] = transformers_generate(pairs["draft"], sampling, tokens, k)
    return by_name


def ratio(results: dict[str, Result], name: str, reference: str) -> float:
    """Median over prompts and repeats of the contender's pace / the reference's pace on the same prompt and repeat."""
    return median_ratio(results, name, reference, lambda sample: len(sample.tokens) / sample.seconds)


def median_ratio(results: dict[str, Result], name: str, reference: str, of: Callable[[Sample], float]) -> float:
    """Median over prompts and repeats of a figure of a contender / the same figure of a reference contender."""
    pairs = zip(results[name].samples, results[reference].samples, strict=True)
    return median(of(sample) / of(reference_sample) for sample, reference_sample in pairs)


def first_position(result: Result) -> float:
    """Share of the rounds with a draft that accepted its first token."""
    drafted = [
        n for sample in result.samples for n, (depth, _) in zip(sample.accepts, sample.shapes, strict=True) if depth
    ]
    return sum(n > 0 for n in drafted) / max(1, len(drafted))


def summary(
    results: dict[str, Result], ways: list[Way], pairs: dict[str, sd.Pair], costs: dict[str, Costs]
) -> dict[str, Any]:
    """The ratios that the project sets itself as goals. costs: by method."""
    speedup = {way: results[way.name].speedup for way in ways}
    best = max(ways, key=lambda way: speedup[way])
    chain = max((w for w in ways if w.method == "draft" and w.verification == "token"), key=lambda way: speedup[way])
    head = max((w for w in ways if w.method == "head" and w.verification == "token"), key=lambda way: speedup[way])
    peer = max((n for n in results if "assisted" in n), key=lambda n: results[n].speedup)
    draft, mine = costs["draft"], results[chain.name]
    predicted = formula(mine, draft, pairs["draft"])
    facts: dict[str, Any] = {
        "autoregressive / transformers generate": ratio(results, AUTOREGRESSIVE, "transformers generate"),
        "best of ours": best.name.removeprefix("ours, "),
        "best of ours / autoregressive": speedup[best],
        "best of ours / best of transformers assisted": ratio(results, best.name, peer),
        "best k": chain.k,
        "best k / autoregressive": speedup[chain],
        "best of transformers assisted": peer.removeprefix("transformers assisted, "),
        "best k / best of transformers assisted": ratio(results, chain.name, peer),
        "acceptance": mine.acceptance or 0.0,
        "formula": predicted,
        "measured / formula": speedup[chain] / predicted,
        "repeated text": mine.repeated_share,
        "head, best k": head.k,
        "head: c": costs["head"].c,
        "head: first-position acceptance": first_position(results[head.name]),
        "head: measured / formula": speedup[head] / formula(results[head.name], costs["head"], pairs["head"]),
    }
    token, block = Way("draft", BLOCK_K).name, Way("draft", BLOCK_K, "block").name
    if block in results:
        per_round = [results[name].tokens_per_round or 1.0 for name in (token, block)]
        facts["block / token: tokens per round"] = per_round[1] / per_round[0]
        facts["block / token: seconds per round"] = median_ratio(results, block, token, lambda s: s.seconds / s.rounds)
    return facts


GOALS = {
    "temperature 1": {
        "best of ours / autoregressive": (">=", 2.4),
        "best of ours / best of transformers assisted": (">=", 2.5),
        "block / token: tokens per round": (">=", 1.05),
        "block / token: seconds per round": ("<=", 1.01),
        "head: c": ("<=", 0.07),
        "head: first-position acceptance": (">=", 0.75),
        "head: measured / formula": (">=", 0.92),
    },
    "greedy": {
        "best of ours / autoregressive": (">=", 3.4),
        "best of ours / best of transformers assisted": (">=", 2.5),
    },
}
"""What the project sets itself, by mode and figure of `summary`."""


def goals_met(mode: str, facts: dict[str, Any]) -> dict[str, bool]:
    """Whether each goal of a mode is met."""
    return {
        name: facts[name] >= goal if sign == ">=" else facts[name] <= goal for name, (sign, goal) in GOALS[mode].items()
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
    pairs = {"none": pair, "draft": pair} | {name: with_method(pair, name) for name in METHODS if name != "draft"}
    prompts = [pair.tokenizer(text)["input_ids"] for text in list(sd.held_out_prompts().values())[: arguments.prompts]]
    memory = {name: added_memory(pairs[name], context=arguments.tokens + 64) for name in METHODS}
    memory["none"] = AddedMemory(0, 0)
    report: dict[str, Any] = {"machine": machine(pair), "arguments": {**vars(arguments), "json": None}, "modes": {}}
    report["memory"] = {name: asdict(added) for name, added in memory.items()}
    for mode, sampling in (("temperature 1", sd.Sampling()), ("greedy", sd.GREEDY)):
        ways = our_ways(sampling.greedy, usual_k(pairs["parallel-head"], 8))
        results, costs = compare(console, pairs, ways, prompts, mode, sampling, arguments)
        ratios = summary(results, ways, pairs, costs)
        met = goals_met(mode, ratios)
        console.print(table(mode, results, {way.name: memory[way.method] for way in ways}), "")
        for name, value in ratios.items():
            shown = f"{value:.3f}" if isinstance(value, float) else f"{value}"
            if name in met:
                sign, goal = GOALS[mode][name]
                shown += f"   goal {sign} {goal}: {'met' if met[name] else 'MISSED'}"
            console.print(f"  {name:52}{shown}", soft_wrap=True)
        for name, cost in costs.items():
            v = ", ".join(f"{cost.v(n):.2f}" for n in range(2, 10))
            console.print(f"  {name}: c = {cost.c:.4f}, v(2…9) = {v}")
        console.print()
        report["modes"][mode] = {
            "ratios": ratios,
            "goals": met,
            "costs": _costs_facts(costs["draft"]),
            "head costs": _costs_facts(costs["head"]),
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


def _costs_facts(costs: Costs) -> dict[str, Any]:
    return {"target_step": costs.target_step, "c": costs.c, "v": {n: costs.v(n) for n in costs.scoring}}


def compare(
    console: Console,
    pairs: dict[str, sd.Pair],
    ways: list[Way],
    prompts: list[list[int]],
    mode: str,
    sampling: sd.Sampling,
    arguments: argparse.Namespace,
) -> tuple[dict[str, Result], dict[str, Costs]]:
    """One mode of sampling: step times of the draft model and the head, then everyone in turn."""
    everyone = contenders(pairs, ways, sampling, arguments.tokens)
    timed = "draft", "head"
    total = race_length(len(everyone), len(prompts), arguments.repeats) + len(timed) * (WARM_UP + 15)
    with Progress(TextColumn("{task.description:48}"), BarColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(f"{mode}: step times", total=total)
        costs = {
            name: measure_costs(pairs[name], sampling=sampling, context=240, on_step=lambda: bar.advance(task))
            for name in timed
        }
        results = race(
            everyone,
            prompts,
            baseline=AUTOREGRESSIVE,
            repeats=arguments.repeats,
            on_sample=lambda name: bar.update(task, advance=1, description=f"{mode}: {name}"),
        )
    return results, costs


def table(mode: str, results: dict[str, Result], memory: dict[str, AddedMemory]) -> Table:
    """One line per contender. memory: what ours add to the target, by contender."""
    lines = Table(title=mode, title_justify="left", box=None, padding=(0, 1, 0, 0))
    lines.add_column("", justify="left", no_wrap=True)
    columns = (
        "tokens\nper s",
        "speedup",
        "accepted",
        "tokens\nper round",
        "weights\nMiB",
        "cache\nMiB",
    )
    for column in columns:
        lines.add_column(column, justify="right")
    for r in results.values():
        added = memory.get(r.name)
        lines.add_row(
            r.name,
            f"{r.tokens_per_second:.0f}",
            f"{r.speedup:.2f}",
            "" if r.acceptance is None else f"{r.acceptance:.0%}",
            "" if r.tokens_per_round is None else f"{r.tokens_per_round:.2f}",
            "" if added is None else f"+{added.weights / 2**20:.1f}",
            "" if added is None else f"+{added.cache / 2**20:.1f}",
        )
    return lines


def machine(pair: sd.Pair) -> dict[str, object]:
    """The machine and the versions of the measurement."""
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
