"""Measure the cost of a monitor: the same generations with and without one, in turn, and the time to record a round.

    python benchmarks/monitor_cost.py [--repeats 40] [--json FILE]

The cost as a share of a round is stated twice: as the difference between the generations, which is smaller than their
spread, and as the time of the monitor's own code for one round, measured alone, over the time of a round.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

import specdec_lab as lab
import specdec_ref as sd
from specdec_lab.measurement.benchmark_workload import machine_facts, machine_line

RESULTS = Path(__file__).parent / "results" / "monitor_cost.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pair = sd.load_pair()
    prompts = [pair.tokenizer(text)["input_ids"] for text in list(sd.held_out_prompts().values())[:4]]
    monitor = lab.SpeculativeDecodingMonitor()

    def round_seconds(prompt: list[int], seed: int, watched: bool) -> float:
        generation = sd.generate_speculative(
            pair, prompt, k=4, max_new_tokens=arguments.tokens, seed=seed, monitor=monitor if watched else None
        )
        return generation.seconds / len(generation.rounds)

    for prompt in prompts:
        round_seconds(prompt, 0, True)
        round_seconds(prompt, 0, False)
    pairs = []
    for i in range(arguments.repeats):
        prompt, order = prompts[i % len(prompts)], (True, False) if i % 2 else (False, True)
        seconds = {watched: round_seconds(prompt, i, watched) for watched in order}
        pairs.append((seconds[True], seconds[False]))

    notes = 20_000
    alone = lab.SpeculativeDecodingMonitor()
    controller = alone.watch(sd.FixedK(4))
    generation = sd.generate_speculative(pair, prompts[0], k=4, max_new_tokens=32, seed=1)
    began = time.perf_counter()
    for i in range(notes):
        controller.next_k()
        controller.observe([generation.rounds[i % len(generation.rounds)]])
    note = (time.perf_counter() - began) / notes
    plain = median(without for _, without in pairs)
    report: dict[str, Any] = {
        "machine": machine_facts(pair) | {"date": time.strftime("%Y-%m-%d")},
        "round seconds": plain,
        "watched / not watched, median of pairs": median(watched / without for watched, without in pairs),
        "note seconds": note,
        "note / round": note / plain,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console = Console(highlight=False)
    console.print(machine_line(report["machine"]))
    ratio = report["watched / not watched, median of pairs"]
    console.print(f"a round takes {1000 * plain:.2f} ms; with a monitor {ratio:.4f} times")
    console.print(f"the monitor's own part of it: {1e6 * note:.1f} µs, {note / plain:.3%} of a round")


if __name__ == "__main__":
    main()
