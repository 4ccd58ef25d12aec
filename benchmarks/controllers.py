"""Compare ways to choose k: a heuristic, the cost model and the confidence stop with every fixed k.

    python benchmarks/controllers.py [--quick] [--cpu-clock] [--tokens 128] [--texts 10] [--repeats 2] [--only NAME …]

There are eight workloads, each a stream of generations. Other programs change the speed of a machine by a third for
seconds at a time. All methods therefore generate the same texts with the same seeds, and take turns round by round. A
controller keeps its state for the whole stream. 'Best k' is the fixed k that was fastest in hindsight.

In 1,000 tokens two kinds of noise are too large to resolve 3 %, so they are removed:

- Disturbance by other programs. The times of all rounds of a turn are divided by the median slowdown of that turn. Each
  round then gets the median time of its class: same stream, repeat and method, same number of drafted tokens, and the
  draft's cache complete or not.
- Luck in sampling. A round that drafts n tokens of a sampled text counts the tokens that such rounds emit on average
  on this text, computed from how often the fixed k had each position accepted. Greedy texts have no luck, so their
  tokens are counted. A method gets no credit for drafting more in the easier parts of a sampled text.

The raw figures are reported as well. The 95 % intervals are a bootstrap over texts, which chooses the best k anew in
each resample.

On a busy machine use --cpu-clock. It runs one thread, and all clocks, including those of the controllers, read the CPU
time of that thread. Time that other programs take then does not count.

Every finished stream is stored in runs/, so the same command continues an interrupted run.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from functools import partial
from itertools import accumulate
from operator import mul
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from controller_streams import MIXED, USELESS, MayGarble, Text, workloads
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import specdec_ref as sd
from specdec_lab.measurement.benchmark_workload import machine_facts, machine_line, model_facts
from specdec_lab.measurement.recording import Recording
from specdec_lab.teaching.heuristics import AdaptiveSpeculation
from specdec_ref.control import CostModelSpeculation, as_controller
from specdec_ref.decoding import Controller, Round
from specdec_ref.fast.trace import USES_BEFORE_RECORDING

ROOT = Path(__file__).parents[1]
MAX_K = 8
CONFIDENCE = 0.4
FIXED = [f"k = {k}" for k in range(MAX_K + 1)]
HEURISTIC, COST_MODEL, STOP = "heuristic", "cost model", "confidence stop"
CONTENDERS = [*FIXED, HEURISTIC, COST_MODEL, STOP]
GOAL, GOAL_USELESS, GOAL_MIXED = 0.95, 0.95, 1.0
RESAMPLES = 1000

Ran = dict[str, Any]
"""One generation: tokens, seconds, rounds: [[drafted, accepted, microseconds], …]."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="2 texts of 32 tokens, one repeat; only checks that it runs"
    )
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each text (128)")
    parser.add_argument("--texts", type=int, default=10, help="texts of a stream (10)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of every stream (2); a larger number continues")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="workloads to run; default all")
    parser.add_argument("--cpu-clock", action="store_true", help="one thread, timed in CPU time; for a busy machine")
    parser.add_argument("--draft", default=None, help="another draft: a shipped name or a folder")
    parser.add_argument("--device", default=None)
    parser.add_argument(
        "--json", type=Path, default=None, help="default: the recorded result; --quick: next to the runs"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "controllers.jsonl", help="the finished streams")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.texts, arguments.repeats = 32, 2, 1
        arguments.runs = arguments.runs.with_stem(f"{arguments.runs.stem}_quick")
    recorded = ROOT / "benchmarks" / "results" / "controllers.json"
    arguments.json = arguments.json or (arguments.runs.with_suffix(".json") if arguments.quick else recorded)
    if arguments.cpu_clock:
        torch.set_num_threads(1)
        time.perf_counter = time.thread_time
    transformers.logging.set_verbosity_error()
    console = Console(highlight=False)
    pair = sd.load_pair(draft=arguments.draft, device=arguments.device)
    streams = workloads(pair, arguments.texts)
    names = arguments.only or list(streams)
    if unknown := [name for name in names if name not in streams]:
        parser.error(f"--only {unknown[0]!r}: takes {', '.join(map(repr, streams))}")
    facts = {
        "settings": {"tokens": arguments.tokens, "texts": arguments.texts, "confidence": CONFIDENCE},
        "clock": "CPU time of one thread" if arguments.cpu_clock else "wall",
        "models": {"target": model_facts(pair.target), "draft": model_facts(pair.draft)},
        "machine": machine_facts(pair),
    }
    bench = Bench(pair, arguments.tokens)
    columns = TextColumn("{task.description:32}"), BarColumn(), TimeRemainingColumn()
    with Recording(arguments.runs, facts) as recording, Progress(*columns, console=console) as bar:
        task = bar.add_task("warm-up", total=len(names) * arguments.repeats)
        finished = {(run["workload"], run["repeat"]) for run in recording.records}
        missing = [(r, n) for r in range(arguments.repeats) for n in names if (n, r) not in finished]
        bar.advance(task, len(names) * arguments.repeats - len(missing))
        if missing:
            bench.record_steps(streams[names[0]][0], rounds=1 if arguments.quick else USES_BEFORE_RECORDING + 2)
        for repeat, name in missing:
            bar.update(task, description=f"{name}, {repeat + 1} of {arguments.repeats}")
            recording.append({"workload": name, "repeat": repeat, "runs": bench.stream(streams[name], repeat)})
            bar.advance(task)
        runs = {name: [r["runs"] for r in recording.records if r["workload"] == name] for name in streams}
    summaries = {name: summary(repeats, streams[name]) for name, repeats in runs.items() if repeats}
    report = {"date": time.strftime("%Y-%m-%d"), **facts, "goals": goals(summaries), "workloads": summaries}
    write(arguments.json, report)
    console.print(machine_line(facts["machine"]), table(summaries), "")
    for name, goal in report["goals"].items():
        low, high = goal["interval"]
        mark = "✓" if goal["kept"] else "✗"
        console.print(f"{mark} {name:44}{goal['reached']:.3f} ({low:.3f} to {high:.3f})   goal {goal['goal']}")
    console.print(f"\nwritten to {arguments.json}")


class Bench:
    """Runs streams with all contenders in turn."""

    def __init__(self, pair: sd.Pair, tokens: int):
        assert pair.draft is not None
        self.pair, self.tokens = pair, tokens
        vocabulary = sd.TransformersModel(pair.target).vocab_size
        self.models = {name: MayGarble(sd.TransformersModel(pair.draft, vocabulary)) for name in CONTENDERS}

    def record_steps(self, text: Text, rounds: int) -> None:
        """Run every shape of step until it is recorded, so that no timed round includes a recording."""
        for k in range(MAX_K + 1):
            self.side_by_side(text, {FIXED[k]: k}, seed=0, tokens=rounds * (k + 1))

    def stream(self, texts: list[Text], repeat: int) -> dict[str, list[Ran]]:
        """Generate every text with every contender. The order of contenders rotates from text to text.

        Returns:
            By contender, one generation per text.
        """
        controllers = {name: controller(name) for name in CONTENDERS}
        for i, text in enumerate(texts[:2]):  # not timed: controllers measure the costs of this machine
            self.side_by_side(text, {name: controllers[name] for name in (HEURISTIC, COST_MODEL)}, seed=10_000 + i)
        by_contender: dict[str, list[Ran]] = {name: [] for name in CONTENDERS}
        for i, text in enumerate(texts):
            first = (i + repeat) % len(CONTENDERS)
            order = [*CONTENDERS[first:], *CONTENDERS[:first]]
            ran = self.side_by_side(text, {name: controllers[name] for name in order}, seed=1000 * repeat + i)
            for name in CONTENDERS:
                by_contender[name].append(ran[name])
        return by_contender

    def side_by_side(
        self, text: Text, controllers: dict[str, int | Controller], seed: int, tokens: int | None = None
    ) -> dict[str, Ran]:
        """Generate one text with each controller. They take turns round by round until all have finished."""
        generations: dict[str, sd.Generation] = {}
        clocks = {name: _RoundClock(as_controller(k)) for name, k in controllers.items()}
        streams = {}
        for name, clock in clocks.items():
            self.models[name].garbled = text.garbled
            streams[name] = sd.stream_speculative(
                self.pair,
                text.prompt,
                k=clock,
                drafter=sd.ModelDrafter(self.models[name], CONFIDENCE if name == STOP else 0.0),
                max_new_tokens=tokens or self.tokens,
                sampling=text.sampling,
                seed=seed,
                on_end=partial(generations.__setitem__, name),
            )
        while streams:
            for name in list(streams):
                clocks[name].start()
                if next(streams[name], None) is None:
                    del streams[name]
        ran = {}
        for name, generation in generations.items():
            times = zip(generation.rounds, clocks[name].seconds, strict=True)
            rounds = [[len(r.drafted), r.accepted, round(1e6 * s)] for r, s in times]
            seconds = sum(clocks[name].seconds)
            ran[name] = {"tokens": len(generation.tokens), "seconds": seconds, "rounds": rounds}
        return ran


class _RoundClock:
    """A controller that times each round, including the work of the controller it delegates to."""

    def __init__(self, controller: Controller):
        self.controller, self.max_k, self.next_k = controller, controller.max_k, controller.next_k
        self.seconds: list[float] = []

    def start(self) -> None:
        self._began = time.perf_counter()

    def observe(self, rounds: list[Round]) -> None:
        self.controller.observe(rounds)
        self.seconds.append(time.perf_counter() - self._began)


def controller(name: str) -> int | Controller:
    """A new controller, or the fixed k, of that name."""
    if name == HEURISTIC:
        return AdaptiveSpeculation(max_k=MAX_K)
    if name == COST_MODEL:
        return CostModelSpeculation(MAX_K)
    return MAX_K if name == STOP else FIXED.index(name)


def summary(runs: list[dict[str, list[Ran]]], texts: list[Text]) -> dict[str, Any]:
    """Speed, acceptance and tokens per round of all contenders over one stream.

    Args:
        runs: one per repeat; by contender, one generation per text.
        texts: the texts of the stream.
    """
    sampled = [text.sampling.temperature > 0 for text in texts]
    emitted = [mean_tokens([run[name][i] for run in runs for name in FIXED[1:]]) for i in range(len(texts))]
    paced = [at_one_pace(at_one_pace(run, run), run) for run in runs]
    seconds, worth, everyone = {}, {}, {}
    for name in CONTENDERS:
        ran = [run[name] for run in runs]
        texts_ran = [text for repeat in ran for text in repeat]
        usual = [typical_times(repeat[name]) for repeat in paced]  # per repeat, since the machine's pace changes
        spent = [
            [sum(times[c] for c in classes(text)) for text in repeat] for times, repeat in zip(usual, ran, strict=True)
        ]
        seconds[name] = np.array(spent).sum(0)
        counted = np.array([[text["tokens"] for text in repeat] for repeat in ran]).sum(0)
        expected = np.array(
            [[sum(emitted[i][d] for d, _, _ in text["rounds"]) for i, text in enumerate(repeat)] for repeat in ran]
        ).sum(0)
        # The confidence stop chooses k by the sampled tokens, so averages over rounds of one k do not apply to it.
        worth[name] = counted if name == STOP else np.where(sampled, expected, counted)
        rounds = [r for text in texts_ran for r in text["rounds"]]
        examined = sum(min(a + 1, d) for d, a, _ in rounds)
        everyone[name] = {
            "tokens_per_second": float(worth[name].sum() / seconds[name].sum()),
            "tokens_per_second_as_it_ran": float(counted.sum() / sum(text["seconds"] for text in texts_ran)),
            "acceptance": sum(a for _, a, _ in rounds) / examined if examined else None,
            "tokens_per_round": float(counted.sum() / len(rounds)),
            "drafted_per_round": sum(d for d, _, _ in rounds) / len(rounds),
            "rounds": len(rounds),
        }
    pace = {name: figures["tokens_per_second"] for name, figures in everyone.items()}
    best = max(FIXED, key=lambda name: pace[name])
    shares = {name: {"of_best_k": pace[name] / pace[best], "speedup": pace[name] / pace[FIXED[0]]} for name in pace}
    intervals = bootstrap(seconds, worth)
    as_ran = {name: figures["tokens_per_second_as_it_ran"] for name, figures in everyone.items()}
    return {
        "repeats": len(runs),
        "best_k": FIXED.index(best),
        "of_best_k_as_it_ran": {n: as_ran[n] / max(as_ran[k] for k in FIXED) for n in (HEURISTIC, COST_MODEL, STOP)},
        "contenders": {n: everyone[n] | shares[n] | intervals.get(n, {}) for n in CONTENDERS},
    }


def mean_tokens(fixed: list[Ran]) -> list[float]:
    """Average tokens of a round that drafts 0 … MAX_K tokens: 1 + Σ of the probabilities to accept at least i."""
    rounds = np.array([(d, a) for t in fixed for d, a, _ in t["rounds"]])
    accepted_shares = []
    for i in range(MAX_K):
        reached = (rounds[:, 1] >= i) & (rounds[:, 0] > i)
        accepted = (rounds[:, 1] > i) & reached
        accepted_shares.append(float(accepted.sum() / reached.sum()) if reached.any() else 0.0)
    return list(accumulate(accumulate(accepted_shares, mul), initial=1.0))


def classes(ran: Ran) -> list[tuple[int, bool, bool]]:
    """The class of each round: drafted tokens, whether the draft had to catch up, whether it was the first."""
    drafted = [d for d, _, _ in ran["rounds"]]
    before = [0, *drafted[:-1]]
    return [(d, d > 0 and b == 0, i == 0) for i, (d, b) in enumerate(zip(drafted, before, strict=True))]


def typical_times(runs: list[Ran]) -> dict[tuple[int, bool, bool], float]:
    """Median seconds of rounds of one class."""
    seconds_by_class = defaultdict(list)
    for ran in runs:
        for kind, (_, _, microseconds) in zip(classes(ran), ran["rounds"], strict=True):
            seconds_by_class[kind].append(microseconds / 1e6)
    return {kind: median(times) for kind, times in seconds_by_class.items()}


def at_one_pace(usual: dict[str, list[Ran]], run: dict[str, list[Ran]]) -> dict[str, list[Ran]]:
    """Rescale the times of a run to a machine of constant speed.

    Args:
        usual: the run that gives the typical time of each class of rounds.
        run: the run to rescale.
    """
    typical = {name: typical_times(texts) for name, texts in usual.items()}
    rescaled: dict[str, list[Ran]] = {name: [] for name in run}
    for i in range(len(run[FIXED[0]])):
        slower = defaultdict(list)  # by turn
        for name, texts in run.items():
            for turn, (kind, (_, _, took)) in enumerate(zip(classes(texts[i]), texts[i]["rounds"], strict=True)):
                slower[turn].append(took / typical[name][kind])
        pace = {turn: median(ratios) / 1e6 for turn, ratios in slower.items()}  # ratios of microseconds to seconds
        for name, texts in run.items():
            rounds = [[d, a, took / pace[turn]] for turn, (d, a, took) in enumerate(texts[i]["rounds"])]
            rescaled[name].append(texts[i] | {"rounds": rounds})
    return rescaled


def bootstrap(seconds: dict[str, Any], worth: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """95 % bootstrap intervals over texts, for the share of the best k and for the speedup."""
    n = len(seconds[COST_MODEL])
    resampled = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    pace = {name: worth[name][resampled].sum(1) / seconds[name][resampled].sum(1) for name in CONTENDERS}
    best = np.max([pace[k] for k in FIXED], axis=0)
    intervals = {}
    for name in (HEURISTIC, COST_MODEL, STOP):
        shares = {"of_best_k_interval": pace[name] / best, "speedup_interval": pace[name] / pace[FIXED[0]]}
        intervals[name] = {key: tuple(map(float, np.quantile(share, (0.025, 0.975)))) for key, share in shares.items()}
    return intervals


def goals(summaries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The goals of the cost model, and its results. On a mixed stream it has to be faster than every fixed k."""
    lines = {}
    for name, summary_of_stream in summaries.items():
        ours = summary_of_stream["contenders"][COST_MODEL]
        goal, reached = GOAL_MIXED if name == MIXED else GOAL, ours["of_best_k"]
        is_reached = reached > goal if name == MIXED else reached >= goal
        reach = {"reached": reached, "interval": ours["of_best_k_interval"]}
        lines[f"{name}: cost model / best k"] = {"goal": goal, **reach, "kept": is_reached}
        if name == USELESS:
            reach = {"reached": ours["speedup"], "interval": ours["speedup_interval"]}
            lines[f"{name}: cost model / autoregressive"] = {
                "goal": GOAL_USELESS,
                **reach,
                "kept": ours["speedup"] >= GOAL_USELESS,
            }
    return lines


def table(summaries: dict[str, dict[str, Any]]) -> Table:
    """Speedup of all contenders over autoregressive decoding, one line per workload."""
    lines = Table(title="tokens per second, times those of k = 0", title_justify="left", box=None, padding=(0, 1, 0, 0))
    names = ["", "best k", *(str(k) for k in range(1, MAX_K + 1)), "heuristic", "cost m.", "stop"]
    for column in names:
        lines.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for name, summary_of_stream in summaries.items():
        speedups = [f"{summary_of_stream['contenders'][contender]['speedup']:.2f}" for contender in CONTENDERS[1:]]
        lines.add_row(name, str(summary_of_stream["best_k"]), *speedups)
    return lines


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report. An interruption leaves the previous file complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".part")
    partial_file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial_file, path)


if __name__ == "__main__":
    main()
