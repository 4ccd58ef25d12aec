"""Who chooses k best: the source text's heuristic, the cost model and the confidence stop against every fixed k.

    python benchmarks/controllers.py [--quick] [--cpu-clock] [--tokens 128] [--texts 10] [--repeats 2] [--only NAME …]

Eight workloads, each a stream of generations. Everyone generates the same texts with the same seeds, in turn, round by
round, so that all see the same machine, whose speed other programs change by a third for seconds at a time; a
controller lives through its stream. 'Best k' is the fixed k that turns out fastest afterwards, which nobody knows
before.

Two kinds of chance are taken out, as 1,000 tokens hold too much of both to tell 3 %. Disturbance: of rounds played in
one turn all were as much slower than usual as the median of them, and are taken as that much faster; then a round's
time is the median of rounds like it (same stream, repeat and chooser, as many tokens drafted, draft in step or
behind). Luck: on a sampled text the tokens of a round that drafts n are what such rounds emit on this text on
average, by how often fixed k had each position accepted there; greedy texts have no luck, there tokens are counted.
That a chooser drafts more in the easier parts of one text is not credited to it then. The figures as they ran stand
beside, and the 95 % interval comes from drawing the texts again (bootstrap, the best k chosen anew each time).

On a machine that is not quiet, --cpu-clock: one thread, and every clock, the controllers' too, tells the CPU time of
that thread, so that what other programs take does not count.

Every finished stream is on the disk (runs/): the same command goes on where it was stopped.
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
    parser.add_argument("--quick", action="store_true", help="2 texts of 32 tokens, once: to see that it runs")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each text (128)")
    parser.add_argument("--texts", type=int, default=10, help="texts of a stream (10)")
    parser.add_argument("--repeats", type=int, default=2, help="times that every stream is run (2); more go on")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="workloads to run; default all")
    parser.add_argument("--cpu-clock", action="store_true", help="one thread, and its CPU time; for a busy machine")
    parser.add_argument("--draft", default=None, help="another draft: a shipped name or a folder")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, default=None, help="default: the recorded one; --quick: beside the runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "controllers.jsonl", help="what is done so far")
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
    with Recording(arguments.runs, facts) as done, Progress(*columns, console=console) as bar:
        task = bar.add_task("warm-up", total=len(names) * arguments.repeats)
        there = {(run["workload"], run["repeat"]) for run in done.records}
        missing = [(r, n) for r in range(arguments.repeats) for n in names if (n, r) not in there]
        bar.advance(task, len(names) * arguments.repeats - len(missing))
        if missing:
            bench.record_steps(streams[names[0]][0], rounds=1 if arguments.quick else USES_BEFORE_RECORDING + 2)
        for repeat, name in missing:
            bar.update(task, description=f"{name}, {repeat + 1} of {arguments.repeats}")
            done.append({"workload": name, "repeat": repeat, "runs": bench.stream(streams[name], repeat)})
            bar.advance(task)
        runs = {name: [one["runs"] for one in done.records if one["workload"] == name] for name in streams}
    found = {name: summary(every, streams[name]) for name, every in runs.items() if every}
    report = {"date": time.strftime("%Y-%m-%d"), **facts, "goals": goals(found), "workloads": found}
    write(arguments.json, report)
    console.print(machine_line(facts["machine"]), table(found), "")
    for name, goal in report["goals"].items():
        low, high = goal["interval"]
        mark = "✓" if goal["kept"] else "✗"
        console.print(f"{mark} {name:44}{goal['reached']:.3f} ({low:.3f} to {high:.3f})   goal {goal['goal']}")
    console.print(f"\nwritten to {arguments.json}")


class Bench:
    """Runs streams with everyone in turn."""

    def __init__(self, pair: sd.Pair, tokens: int):
        assert pair.draft is not None
        self.pair, self.tokens = pair, tokens
        vocabulary = sd.TransformersModel(pair.target).vocab_size
        self.models = {name: MayGarble(sd.TransformersModel(pair.draft, vocabulary)) for name in CONTENDERS}

    def record_steps(self, text: Text, rounds: int) -> None:
        """Let every shape of step occur so often that it is recorded, so that nobody pays for it on the clock."""
        for k in range(MAX_K + 1):
            self.side_by_side(text, {FIXED[k]: k}, seed=0, tokens=rounds * (k + 1))

    def stream(self, texts: list[Text], repeat: int) -> dict[str, list[Ran]]:
        """Every text by every contender, in an order that moves on from text to text. By contender, text by text."""
        controllers = {name: controller(name) for name in CONTENDERS}
        for i, text in enumerate(texts[:2]):  # unclocked: controllers learn the costs of this machine
            self.side_by_side(text, {name: controllers[name] for name in (HEURISTIC, COST_MODEL)}, seed=10_000 + i)
        found: dict[str, list[Ran]] = {name: [] for name in CONTENDERS}
        for i, text in enumerate(texts):
            first = (i + repeat) % len(CONTENDERS)
            order = [*CONTENDERS[first:], *CONTENDERS[:first]]
            ran = self.side_by_side(text, {name: controllers[name] for name in order}, seed=1000 * repeat + i)
            for name in CONTENDERS:
                found[name].append(ran[name])
        return found

    def side_by_side(
        self, text: Text, controllers: dict[str, int | Controller], seed: int, tokens: int | None = None
    ) -> dict[str, Ran]:
        """One text by each of them, who play a round in turn until all are through."""
        done: dict[str, sd.Generation] = {}
        clocks = {name: _RoundClock(as_controller(one)) for name, one in controllers.items()}
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
                on_end=partial(done.__setitem__, name),
            )
        while streams:
            for name in list(streams):
                clocks[name].start()
                if next(streams[name], None) is None:
                    del streams[name]
        found = {}
        for name, one in done.items():
            times = zip(one.rounds, clocks[name].seconds, strict=True)
            rounds = [[len(r.drafted), r.accepted, round(1e6 * s)] for r, s in times]
            found[name] = {"tokens": len(one.tokens), "seconds": sum(clocks[name].seconds), "rounds": rounds}
        return found


class _RoundClock:
    """Stands before a controller and times the rounds, the controller's own work included."""

    def __init__(self, controller: Controller):
        self.controller, self.max_k, self.next_k = controller, controller.max_k, controller.next_k
        self.seconds: list[float] = []

    def start(self) -> None:
        self._began = time.perf_counter()

    def observe(self, rounds: list[Round]) -> None:
        self.controller.observe(rounds)
        self.seconds.append(time.perf_counter() - self._began)


def controller(name: str) -> int | Controller:
    """A new one of that name."""
    if name == HEURISTIC:
        return AdaptiveSpeculation(max_k=MAX_K)
    if name == COST_MODEL:
        return CostModelSpeculation(MAX_K)
    return MAX_K if name == STOP else FIXED.index(name)


def summary(runs: list[dict[str, list[Ran]]], texts: list[Text]) -> dict[str, Any]:
    """What a stream took everyone. runs: one for each repeat."""
    lucky = [text.sampling.temperature > 0 for text in texts]
    emitted = [mean_tokens([run[name][i] for run in runs for name in FIXED[1:]]) for i in range(len(texts))]
    paced = [at_one_pace(at_one_pace(run, run), run) for run in runs]
    seconds, worth, everyone = {}, {}, {}
    for name in CONTENDERS:
        ran = [run[name] for run in runs]
        every = [text for one in ran for text in one]
        usual = [typical_times(one[name]) for one in paced]  # for each repeat: half an hour later the pace is another
        spent = [[sum(times[c] for c in classes(t)) for t in one] for times, one in zip(usual, ran, strict=True)]
        seconds[name] = np.array(spent).sum(0)
        counted = np.array([[t["tokens"] for t in one] for one in ran]).sum(0)
        expected = np.array(
            [[sum(emitted[i][d] for d, _, _ in t["rounds"]) for i, t in enumerate(one)] for one in ran]
        ).sum(0)
        worth[name] = np.where(lucky, expected, counted) if name != STOP else counted  # it stops where luck runs out
        rounds = [r for t in every for r in t["rounds"]]
        judged = sum(min(a + 1, d) for d, a, _ in rounds)
        everyone[name] = {
            "tokens_per_second": float(worth[name].sum() / seconds[name].sum()),
            "tokens_per_second_as_it_ran": float(counted.sum() / sum(t["seconds"] for t in every)),
            "acceptance": sum(a for _, a, _ in rounds) / judged if judged else None,
            "tokens_per_round": float(counted.sum() / len(rounds)),
            "drafted_per_round": sum(d for d, _, _ in rounds) / len(rounds),
            "rounds": len(rounds),
        }
    pace = {name: one["tokens_per_second"] for name, one in everyone.items()}
    best = max(FIXED, key=lambda name: pace[name])
    shares = {name: {"of_best_k": pace[name] / pace[best], "speedup": pace[name] / pace[FIXED[0]]} for name in pace}
    intervals = bootstrap(seconds, worth)
    as_ran = {name: one["tokens_per_second_as_it_ran"] for name, one in everyone.items()}
    return {
        "repeats": len(runs),
        "best_k": FIXED.index(best),
        "of_best_k_as_it_ran": {n: as_ran[n] / max(as_ran[k] for k in FIXED) for n in (HEURISTIC, COST_MODEL, STOP)},
        "contenders": {n: everyone[n] | shares[n] | intervals.get(n, {}) for n in CONTENDERS},
    }


def mean_tokens(fixed: list[Ran]) -> list[float]:
    """What a round emits on average that drafts 0 … MAX_K tokens: 1 + Σ of the chances to have so many accepted."""
    rounds = np.array([(d, a) for t in fixed for d, a, _ in t["rounds"]])
    chances = []
    for i in range(MAX_K):
        reached = (rounds[:, 1] >= i) & (rounds[:, 0] > i)
        accepted = (rounds[:, 1] > i) & reached
        chances.append(float(accepted.sum() / reached.sum()) if reached.any() else 0.0)
    return list(accumulate(accumulate(chances, mul), initial=1.0))


def classes(ran: Ran) -> list[tuple[int, bool, bool]]:
    """Of every round: tokens drafted, whether the draft had to read what it missed, whether it was a text's first."""
    drafted = [d for d, _, _ in ran["rounds"]]
    before = [0, *drafted[:-1]]
    return [(d, d > 0 and b == 0, i == 0) for i, (d, b) in enumerate(zip(drafted, before, strict=True))]


def typical_times(every: list[Ran]) -> dict[tuple[int, bool, bool], float]:
    """Median seconds of rounds of one class."""
    found = defaultdict(list)
    for ran in every:
        for kind, (_, _, microseconds) in zip(classes(ran), ran["rounds"], strict=True):
            found[kind].append(microseconds / 1e6)
    return {kind: median(times) for kind, times in found.items()}


def at_one_pace(usual: dict[str, list[Ran]], run: dict[str, list[Ran]]) -> dict[str, list[Ran]]:
    """A run as if the machine had always been as fast as it usually was, by what `usual` says of classes of rounds."""
    typical = {name: typical_times(texts) for name, texts in usual.items()}
    found: dict[str, list[Ran]] = {name: [] for name in run}
    for i in range(len(run[FIXED[0]])):
        slower = defaultdict(list)  # by turn
        for name, texts in run.items():
            for turn, (kind, (_, _, took)) in enumerate(zip(classes(texts[i]), texts[i]["rounds"], strict=True)):
                slower[turn].append(took / typical[name][kind])
        pace = {turn: median(ratios) / 1e6 for turn, ratios in slower.items()}  # ratios of microseconds to seconds
        for name, texts in run.items():
            rounds = [[d, a, took / pace[turn]] for turn, (d, a, took) in enumerate(texts[i]["rounds"])]
            found[name].append(texts[i] | {"rounds": rounds})
    return found


def bootstrap(seconds: dict[str, Any], worth: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """95 % intervals of the share of the best k, and of the speedup, when other texts of the kind are drawn."""
    n = len(seconds[COST_MODEL])
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    pace = {name: worth[name][drawn].sum(1) / seconds[name][drawn].sum(1) for name in CONTENDERS}
    best = np.max([pace[k] for k in FIXED], axis=0)
    found = {}
    for name in (HEURISTIC, COST_MODEL, STOP):
        shares = {"of_best_k_interval": pace[name] / best, "speedup_interval": pace[name] / pace[FIXED[0]]}
        found[name] = {key: tuple(map(float, np.quantile(share, (0.025, 0.975)))) for key, share in shares.items()}
    return found


def goals(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the cost model has to reach, and what it reached. A mixed stream has to be faster than with any fixed k."""
    lines = {}
    for name, one in found.items():
        ours = one["contenders"][COST_MODEL]
        goal, reached = GOAL_MIXED if name == MIXED else GOAL, ours["of_best_k"]
        kept = reached > goal if name == MIXED else reached >= goal
        reach = {"reached": reached, "interval": ours["of_best_k_interval"]}
        lines[f"{name}: cost model / best k"] = {"goal": goal, **reach, "kept": kept}
        if name == USELESS:
            reach = {"reached": ours["speedup"], "interval": ours["speedup_interval"]}
            lines[f"{name}: cost model / one by one"] = {
                "goal": GOAL_USELESS,
                **reach,
                "kept": ours["speedup"] >= GOAL_USELESS,
            }
    return lines


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Speedup over one by one of everyone, a line for each workload."""
    lines = Table(title="tokens per second, times those of k = 0", title_justify="left", box=None, padding=(0, 1, 0, 0))
    names = ["", "best k", *(str(k) for k in range(1, MAX_K + 1)), "heuristic", "cost m.", "stop"]
    for column in names:
        lines.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for name, one in found.items():
        everyone = [f"{one['contenders'][contender]['speedup']:.2f}" for contender in CONTENDERS[1:]]
        lines.add_row(name, str(one["best_k"]), *everyone)
    return lines


def write(path: Path, report: dict[str, Any]) -> None:
    """All at once, so that a stop in the middle leaves the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


if __name__ == "__main__":
    main()
