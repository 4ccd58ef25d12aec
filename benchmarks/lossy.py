"""Measure what lossy rules gain and cost on the shipped pair: tokens per round against distance from the target.

    python benchmarks/lossy.py [--positions 200] [--k 4] [--temperature 1] [--json FILE] [--figure FILE]

At each position of held-out text the draft samples k tokens, once, from a fixed seed. Every rule decides the same
blocks, and all its decisions are enumerated instead of sampled. So the distance of the first emitted token and the
acceptance are exact, and the tokens per round are exact given the drafted tokens. Nothing is timed.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import specdec_ref as sd
from specdec_lab.equivalence.lossy_tradeoff import RULES, Tradeoff, draft_blocks, tradeoff, tradeoff_figure
from specdec_lab.measurement.benchmark_workload import model_facts

RESULTS = Path(__file__).parent / "results"


def table(tradeoffs: list[Tradeoff]) -> Table:
    """One line per rule."""
    lines = Table(box=None, padding=(0, 2, 0, 0))
    lines.add_column("rule", no_wrap=True)
    lines.add_column("", no_wrap=True)
    for column in ("accepted", "tokens\nper round", "TV, mean", "TV,\nlargest"):
        lines.add_column(column, justify="right")
    for point in tradeoffs:
        lines.add_row(
            point.rule.family,
            point.rule.setting,
            f"{point.acceptance:.1%}",
            f"{point.tokens_per_round:.2f}",
            f"{point.tv:.3f}",
            "–" if math.isnan(point.largest_tv) else f"{point.largest_tv:.3f}",
        )
    return lines


def facts(point: Tradeoff) -> dict[str, Any]:
    """One entry of the JSON file."""
    return {
        "rule": point.rule.family,
        "setting": point.rule.setting,
        "exact": point.rule.exact,
        "acceptance": point.acceptance,
        "tokens_per_round": point.tokens_per_round,
        "tv": point.tv,
        "largest_tv": None if math.isnan(point.largest_tv) else point.largest_tv,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=200, help="positions of held-out text (200)")
    parser.add_argument("--drafts", type=int, default=8, help="blocks drafted at each position (8)")
    parser.add_argument("--k", type=int, default=4, help="tokens drafted at each (4)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of target and draft (1)")
    parser.add_argument("--draft", default=None, help="another draft: a shipped name or a folder")
    parser.add_argument("--json", type=Path, default=RESULTS / "lossy.json")
    parser.add_argument("--figure", type=Path, default=RESULTS / "lossy.svg", help=".svg or .png")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    pair = sd.load_pair(draft=arguments.draft, device="cpu")
    draft = pair.draft
    assert draft is not None  # the pair that ships has one
    blocks = draft_blocks(
        pair, arguments.positions, arguments.k, sd.Sampling(arguments.temperature), drafts=arguments.drafts
    )
    tradeoffs = []
    for rule in RULES:
        console.print(f"{rule.family} {rule.setting}", style="dim")
        tradeoffs.append(tradeoff(rule, blocks))
    console.print(table(tradeoffs))
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "target": model_facts(pair.target),
        "draft": model_facts(draft),
        "positions": arguments.positions,
        "drafts": arguments.drafts,
        "k": arguments.k,
        "temperature": arguments.temperature,
        "rules": [facts(point) for point in tradeoffs],
    }
    arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tradeoff_figure(tradeoffs, arguments.k).savefig(arguments.figure, metadata={"Date": None})
    console.print(f"written to {arguments.json} and {arguments.figure}")


if __name__ == "__main__":
    main()
