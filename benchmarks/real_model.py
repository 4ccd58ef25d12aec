"""What speculation costs and gains with a real model, SmolLM2-135M-Instruct, on this machine.

    make test-real                                # installs the model, once
    python benchmarks/real_model.py [--json FILE]

Two measurements, each with its contenders in turn, as medians:

- v(n): the time to score n tokens in one step / the time to score one, for n = 1 … 9, with steps='plain' (the model as
  it is) and with the default (steps recorded, and products with packed weights on a CPU).
- prompt lookup against autoregressive decoding, greedy, on a summary and on a letter copied with one change.

It also records the rounds of prompt lookup with k = 4 on each task, as text, for the lessons and the README's picture.

It takes under 6 minutes on two idle cores. --quick makes fewer repeats. --svg FILE measures nothing: it draws the
recorded rounds of the summary, as they look in a terminal.
"""

import argparse
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import specdec_ref as sd
from specdec_lab.cli.common import terminal_svg
from specdec_lab.measurement.benchmark_workload import machine_facts, machine_line
from specdec_lab.teaching.strip import legend_text, recorded_rounds, recorded_strip, strip_text
from specdec_ref.fast.steps import choose_steps
from specdec_ref.fast.trace import USES_BEFORE_RECORDING
from specdec_ref.models import TransformersModel

FOLDER = Path(__file__).parents[1] / ".venv" / "smollm2-135m-instruct"
RESULTS = Path(__file__).parent / "results" / "real_model.json"
MOST = 9
CONTEXT = 256
KS = (2, 4, 8)
NEW_TOKENS = 128

ARTICLE = """\
The harbor of Lindholm was built in 1874, when the town had only four hundred inhabitants. Fishing boats brought in cod
and herring, and a small steamer carried mail to the islands twice a week. After the railway arrived in 1902, the harbor
grew quickly. Timber from the inland forests was loaded onto ships bound for England, and two shipyards opened on the
eastern shore. The shipyards closed in 1978. For almost twenty years the quays stood empty. In 1996 the town council
decided to turn the harbor into a place for visitors. The old warehouses became a museum, a library and a hotel, and the
ferry to the islands now leaves every hour. Last year the harbor had more than 300,000 visitors."""

LETTER = """\
Dear Ms. Weber,

Thank you for your order of 3 May. We have packed the following items: one oak table, four oak chairs and two lamps with
a green shade. The parcel leaves our warehouse in Bremen on Monday and reaches you by Thursday. If an item is damaged,
please send us a photograph within fourteen days, and we will replace it without charge.

Yours sincerely,
Jonas Brandt"""

TASKS = {
    "summary": (f"Summarize this text in four sentences.\n\n{ARTICLE}", ""),
    "edit": (f"Copy this letter. Change only the name Weber to Miller.\n\n{LETTER}", "Dear Ms. Miller,"),
}
"""A question, and the beginning of its answer: so small a model would not begin the copy by itself."""


@dataclass(frozen=True)
class Run:
    """The speed and the rounds of one contender on a task."""

    tokens_per_second: float
    speedup: float
    tokens_per_round: float
    acceptance: float


def step_times(pair: sd.Pair, repeats: int) -> dict[str, dict[int, float]]:
    """Median seconds of one step over n tokens after `CONTEXT` others, for each way to run steps, by n.

    All (way, n) are timed in turn, `repeats` times, after as many steps as it takes until a step is recorded.
    """
    text = pair.tokenizer(ARTICLE * 3)["input_ids"]
    models: dict[str, TransformersModel] = {}
    for way in ("plain", "auto"):
        choose_steps(pair.target, way)
        models[way] = TransformersModel(pair.target)
        models[way].start(1, CONTEXT + MOST)
        models[way].prefill([text[:CONTEXT]])
    seconds: dict[str, dict[int, list[float]]] = {way: {n: [] for n in range(1, MOST + 1)} for way in models}
    warm_up = USES_BEFORE_RECORDING + 4
    for repeat in range(warm_up + repeats):
        for n in range(1, MOST + 1):
            tokens = torch.tensor([text[CONTEXT : CONTEXT + n]])
            for way, model in models.items():
                if way == "plain" and repeat < warm_up - 2:  # nothing to record
                    continue
                began = time.perf_counter()
                model.extend(tokens)
                took = time.perf_counter() - began
                model.rewind([CONTEXT])
                if repeat >= warm_up:
                    seconds[way][n].append(took)
    choose_steps(pair.target, "auto")
    return {way: {n: median(times) for n, times in by_n.items()} for way, by_n in seconds.items()}


def lookup_runs(pair: sd.Pair, task: str, repeats: int) -> tuple[dict[str, Run], sd.Generation]:
    """Prompt lookup with each k, and autoregressive decoding, in turn.

    Returns the runs by name, and the last generation with k = 4. A speedup is the median over repeats of the ratio to
    the autoregressive run of the same repeat.
    """
    question, beginning = TASKS[task]
    messages = [{"role": "user", "content": question}]
    prompt = pair.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + beginning
    rates: dict[int, list[float]] = {k: [] for k in (0, *KS)}
    last: dict[int, sd.Generation] = {}
    for repeat in range(repeats + 1):
        for k in rates:
            drafter = sd.PromptLookupDrafter() if k else None
            last[k] = sd.generate_speculative(
                pair, prompt, k=k, max_new_tokens=NEW_TOKENS, sampling=sd.GREEDY, drafter=drafter
            )
            if repeat:  # the first records steps
                decoding = sum(r.draft_seconds + r.verify_seconds for r in last[k].rounds)
                rates[k].append(len(last[k].tokens) / decoding)
    runs = {
        "autoregressive" if k == 0 else f"lookup, k = {k}": Run(
            median(rates[k]),
            median(mine / plain for mine, plain in zip(rates[k], rates[0], strict=True)),
            last[k].tokens_per_round,
            last[k].acceptance_rate,
        )
        for k in rates
    }
    assert last[4].tokens == last[0].tokens, "greedy decoding with lookup differs from autoregressive decoding"
    return runs, last[4]


def step_table(times: dict[str, dict[int, float]]) -> Table:
    """One line for each n."""
    table = Table(title=f"one step after {CONTEXT} tokens", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("n", "plain, ms", "v(n)", "default, ms", "v(n)", "default / plain"):
        table.add_column(name, justify="right")
    for n in range(1, MOST + 1):
        plain, default = times["plain"][n], times["auto"][n]
        table.add_row(
            str(n),
            f"{1e3 * plain:.1f}",
            f"{plain / times['plain'][1]:.2f}",
            f"{1e3 * default:.1f}",
            f"{default / times['auto'][1]:.2f}",
            f"{default / plain:.2f}",
        )
    return table


def run_table(task: str, runs: dict[str, Run]) -> Table:
    """One line for each contender."""
    table = Table(title=f"{task}, greedy, after the prompt", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("tokens/s", "speedup", "tokens per round", "accepted"):
        table.add_column(name, justify="right")
    for name, run in runs.items():
        accepted = "" if name == "autoregressive" else f"{run.acceptance:.0%}"
        table.add_row(
            name, f"{run.tokens_per_second:.1f}", f"{run.speedup:.2f}", f"{run.tokens_per_round:.2f}", accepted
        )
    return table


def write_picture(path: Path, task: str, record: dict[str, Any]) -> None:
    """Draw the recorded rounds of a task as a terminal would show them. record: what this script wrote as JSON."""
    runs = record["tasks"][task]["runs"]
    fast = runs["lookup, k = 4"]
    question, _, text = TASKS[task][0].partition("\n\n")
    console = Console(record=True, width=100, highlight=False, file=io.StringIO())
    console.print(question, "", text.replace("\n", " "), "", sep="\n", style="dim")
    console.print(strip_text(recorded_strip(record["tasks"][task]["rounds"]).rounds))
    console.print("", legend_text(), "", sep="\n")
    console.print(
        f"{fast['tokens_per_round']:.1f} tokens per step of the model instead of 1, "
        f"{fast['speedup']:.1f} times as fast, exactly the same text",
        style="bold",
    )
    path.write_text(
        terminal_svg(console, "SmolLM2-135M on two CPU cores, drafts copied from the prompt"), encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER, help="a model folder (what make test-real installs)")
    parser.add_argument("--quick", action="store_true", help="a third of the repeats, for a look")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--svg", type=Path, help="draw the recorded rounds of the summary into this file, and stop")
    arguments = parser.parse_args()
    if arguments.svg:
        write_picture(arguments.svg, "summary", json.loads(arguments.json.read_text(encoding="utf-8")))
        return
    if not arguments.model.is_dir():
        sys.exit(f"{arguments.model}: there is no such folder; `make test-real` installs the model")
    console = Console(highlight=False)
    pair = sd.load_pair(arguments.model)
    facts = machine_facts(pair) | {"date": time.strftime("%Y-%m-%d")}
    console.print(machine_line(facts))
    times = step_times(pair, repeats=15 if arguments.quick else 45)
    console.print("", step_table(times), sep="\n")
    report: dict[str, Any] = {
        "machine": facts,
        "step_seconds": times,
        "v": {way: {n: seconds / by_n[1] for n, seconds in by_n.items()} for way, by_n in times.items()},
        "tasks": {},
    }
    for task in TASKS:
        runs, generation = lookup_runs(pair, task, repeats=2 if arguments.quick else 5)
        console.print("", run_table(task, runs), sep="\n")
        report["tasks"][task] = {
            "text": generation.text,
            "runs": {name: vars(run) for name, run in runs.items()},
            "rounds": recorded_rounds(generation.rounds, pair.tokenizer),
        }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"\nwritten to {arguments.json}")


if __name__ == "__main__":
    main()
