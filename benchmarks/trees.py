"""How many tokens a round yields with a tree and with a chain, on the pair that ships.

    python benchmarks/trees.py [--tokens 64] [--seeds 2] [--json FILE]

Counts only, so it may share the machine: tokens per round and its standard error over texts, the nodes that the target
scores per round, and how many of its steps are saved. Rounds that the end of a text cuts short do not count.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from math import hypot
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import specdec_ref as sd
from specdec_lab.measurement.benchmark_workload import machine_facts
from specdec_ref.drafting import Drafter

RESULTS = Path(__file__).parent / "results" / "trees.json"
TREES = (3, 2, 1, 1), (2, 2, 1)
SAMPLINGS = {"greedy": sd.GREEDY, "temperature 1": sd.Sampling()}


def contenders(pair: sd.Pair) -> dict[str, tuple[int, Callable[[], Drafter]]]:
    """By name: the k of a round, and what makes the drafter."""
    model = sd.TransformersModel(pair.draft)  # type: ignore[arg-type]
    found: dict[str, tuple[int, Callable[[], Drafter]]] = {
        f"chain, k = {k}": (k, lambda: sd.ModelDrafter(model)) for k in (3, 4)
    }
    for scheme in ("top-k", "without replacement", "iid"):
        for branching in TREES:
            name = f"tree {branching}, {scheme}"
            found[name] = len(branching), lambda b=branching, s=scheme: sd.TreeDrafter(model, b, s)
    for nodes in (10, 21):
        name = f"best first, {nodes} nodes"
        found[name] = 4, lambda n=nodes: sd.BestFirstDrafter(model, n)
    return found


def with_room_for(k: int, rounds: Sequence[sd.Round], tokens: int) -> list[sd.Round]:
    """The rounds that began with more than k of a text's tokens to go."""
    found, left = [], tokens
    for one in rounds:
        if left > k:
            found.append(one)
        left -= len(one.emitted)
    return found


def measured(pair: sd.Pair, k: int, drafter: Drafter, sampling: sd.Sampling, options: Any) -> dict[str, float]:
    """Tokens per round over all prompts and seeds. The standard error takes texts as independent, not rounds."""
    prompts = list(sd.held_out_prompts().values())
    seeds = range(1 if sampling.greedy else options.seeds)
    tokens, rounds, nodes = [], [], 0
    for seed in seeds:
        for generation in sd.generate_speculative(
            pair, prompts, k=k, max_new_tokens=options.tokens, sampling=sampling, seed=seed, drafter=drafter
        ):
            whole = with_room_for(k, generation.rounds, options.tokens)
            tokens.append(sum(r.accepted + 1 for r in whole))
            rounds.append(len(whole))
            nodes += sum(len(r.drafted) for r in whole)
    per_round = sum(tokens) / sum(rounds)
    residuals = [t - per_round * n for t, n in zip(tokens, rounds, strict=True)]
    return {
        "tokens_per_round": per_round,
        "standard_error": hypot(*residuals) / sum(rounds),
        "nodes": nodes / sum(rounds),
        "texts": len(tokens),
        "rounds": sum(rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()

    torch.set_num_threads(1)
    pair = sd.load_pair(device="cpu")
    jobs = [(way, name, *rest) for way in SAMPLINGS for name, rest in contenders(pair).items()]
    found: dict[str, dict[str, dict[str, float]]] = {way: {} for way in SAMPLINGS}
    for way, name, k, make in track(jobs, console=Console(stderr=True), transient=True):
        if way == "greedy" and ("iid" in name or "without" in name):
            continue  # samples are all alike at temperature 0
        found[way][name] = measured(pair, k, make(), SAMPLINGS[way], options)

    table = Table(title="Tokens per round")
    for heading in ("sampling", "draft", "nodes", "tokens per round", "standard error"):
        table.add_column(heading, no_wrap=True)
    for way, rows in found.items():
        for name, row in rows.items():
            shown = f"{row['nodes']:.0f}", f"{row['tokens_per_round']:.2f}", f"{row['standard_error']:.2f}"
            table.add_row(way, name, *shown)
    Console().print(table)
    facts = {"machine": machine_facts(pair), "tokens": options.tokens, "seeds": options.seeds, "results": found}
    options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
