"""Count the tokens per round with a tree and with a chain, on the shipped pair.

    python benchmarks/trees.py [--tokens 64] [--seeds 2] [--json FILE]

It reports tokens per round with their standard error over texts, and the nodes that the target scores per round. Rounds
that the end of a text cuts short do not count. Nothing is timed, so other programs may run.
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
    """By name: the k of a round, and a function that makes the drafter."""
    model = sd.TransformersModel(pair.draft)  # type: ignore[arg-type]
    by_name: dict[str, tuple[int, Callable[[], Drafter]]] = {
        f"chain, k = {k}": (k, lambda: sd.ModelDrafter(model)) for k in (3, 4)
    }
    for scheme in ("top-k", "without replacement", "iid"):
        for branching in TREES:
            name = f"tree {branching}, {scheme}"
            by_name[name] = len(branching), lambda b=branching, s=scheme: sd.TreeDrafter(model, b, s)
    for nodes in (10, 21):
        name = f"best first, {nodes} nodes"
        by_name[name] = 4, lambda n=nodes: sd.BestFirstDrafter(model, n)
    return by_name


def with_room_for(k: int, rounds: Sequence[sd.Round], tokens: int) -> list[sd.Round]:
    """The rounds that began when more than k tokens of the text were left."""
    with_room, left = [], tokens
    for row_round in rounds:
        if left > k:
            with_room.append(row_round)
        left -= len(row_round.emitted)
    return with_room


def measured(pair: sd.Pair, k: int, drafter: Drafter, sampling: sd.Sampling, options: Any) -> dict[str, float]:
    """Tokens per round over all prompts and seeds. The standard error treats texts as independent, but not rounds."""
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
    results: dict[str, dict[str, dict[str, float]]] = {way: {} for way in SAMPLINGS}
    for way, name, k, make in track(jobs, console=Console(stderr=True), transient=True):
        if way == "greedy" and ("iid" in name or "without" in name):
            continue  # samples are all alike at temperature 0
        results[way][name] = measured(pair, k, make(), SAMPLINGS[way], options)

    table = Table(title="Tokens per round")
    for heading in ("sampling", "draft", "nodes", "tokens per round", "standard error"):
        table.add_column(heading, no_wrap=True)
    for way, rows in results.items():
        for name, row in rows.items():
            shown = f"{row['nodes']:.0f}", f"{row['tokens_per_round']:.2f}", f"{row['standard_error']:.2f}"
            table.add_row(way, name, *shown)
    Console().print(table)
    facts = {"machine": machine_facts(pair), "tokens": options.tokens, "seeds": options.seeds, "results": results}
    options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
