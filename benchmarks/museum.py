"""The museum on a trained pair, recorded: which mistakes an experiment detects, and how often it raises a false alarm.

    python benchmarks/museum.py [--samples N] [--runs 20] [--right-runs 200] [--json FILE] [--device cuda]

For every wrong version that changes the distribution: its total variation on this pair, and, where that is 0.03 or
more, whether the empirical test refutes it in each of 20 runs. For the correct code: 200 runs, whose p-values have to
be uniform (Kolmogorov-Smirnov), with no more false alarms than stated. The file is written after every run. A run that
was interrupted continues where it ended, if the arguments are the same.

Millions of samples follow the same two prompts, so rows that begin alike are scored once (`SharedWork`).
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scipy import stats

import specdec_ref as sd
from specdec_lab.equivalence.empirical import with_fewer
from specdec_lab.equivalence.greedy import greedy_agreement
from specdec_lab.equivalence.museum_empirical import Trial, trials
from specdec_lab.equivalence.mutants import MUTANTS, Mutant, mutant
from specdec_lab.equivalence.result import Equivalence

LARGE = 0.03
"""A total variation that has to be detected every time."""

FALSE_ALARM = 0.001
LADDER = 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 8_000, 11_000, 16_000, 22_000, 32_000, 45_000, 64_000, 90_000
"""Samples of a run: the larger the total variation, the fewer are enough."""

RESULTS = Path(__file__).parent / "results" / "museum.json"


def total_variation(result: Equivalence) -> float:
    """An unbiased estimate of the sampler's total variation from the target; near 0 it may be negative.

    One half of the samples chooses the outcomes that are too frequent, the other half measures by how much. Then the
    halves swap.
    """
    excess = mass = 0.0
    for prompt in result.prompts:
        for first, second in (prompt.halves, prompt.halves[::-1]):
            often = first > first.sum() * prompt.probabilities
            excess += second[often].sum() - second.sum() * prompt.probabilities[often].sum()
            mass += second.sum()
    return float(excess / mass)


class Sizes:
    """The two trials at any sample size. They share samplers, whose memory is large."""

    def __init__(self, pair: sd.Pair, largest: int):
        self.pair = pair
        self.largest = trials(pair, samples=largest, false_alarm=FALSE_ALARM)

    def of(self, samples: int) -> tuple[Trial, ...]:
        """Both trials with this number of samples each."""
        return tuple(replace(trial, plan=with_fewer(trial.plan, samples)) for trial in self.largest)

    def finding(self, tv: float, name: str) -> tuple[int, float]:
        """The smallest number of samples in `LADDER` that detects 0.8 of this TV, and the detectable TV."""
        for samples in LADDER:
            (plan,) = (trial.plan for trial in self.of(samples) if trial.name == name)
            if plan.is_informative and plan.detectable <= 0.8 * tv:
                break
        return samples, plan.detectable


SIZES: list[Sizes] = []
"""Of this process: each worker makes its own when it begins."""


def begin(device: str | None, largest: int, threads: int) -> None:
    """Prepare a worker. It ends with its parent, however that ends."""

    def end_with_the_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    torch.set_num_threads(threads)
    SIZES.append(Sizes(sd.load_pair(device=device), largest))


def measured(name: str, samples: int) -> dict[str, Any]:
    """One run of each trial under a wrong version, and greedy decoding; tv is the larger of the two trials."""
    (sizes,), wrong = SIZES, mutant(name)
    trials: dict[str, Any] = {}
    with wrong.installed():
        both = sizes.of(samples)
        for trial in both:
            result = trial.run()
            trials[trial.name] = {
                "tv": total_variation(result),
                "tv_interval": list(result.tv_interval),
                "tv_measured": result.tv,
                "tv_by_chance": result.tv_by_chance,
                "p_value": result.p_value,
                "refuted": not result.consistent,
            }
        greedy = greedy_agreement(sizes.pair, [tree.prompt for tree in both[0].plan.trees], 32)
    largest = max(trials, key=lambda trial: trials[trial]["tv"])
    enough = dict(zip(("samples", "detectable_tv"), sizes.finding(trials[largest]["tv"], largest), strict=True))
    due = enough if trials[largest]["tv"] >= LARGE else {}
    return {
        "tv": trials[largest]["tv"],
        "trial": largest,
        "trials": trials,
        "greedy_consistent": greedy.consistent,
    } | due


def p_value(name: str, trial: str, samples: int, seed: int) -> float:
    """The p-value of one run. name: of the wrong version, or empty."""
    (sizes,), wrong = SIZES, mutant(name) if name else None
    (chosen,) = (each for each in sizes.of(samples) if each.name == trial)
    with wrong.installed() if wrong else nullcontext():
        return chosen.run(seed).p_value


def uniformity(p_values: list[float], false_alarm: float) -> dict[str, Any]:
    """Whether the p-values of the correct code are as the test states."""
    alarms = sum(p < false_alarm for p in p_values)
    ks = stats.kstest(p_values, "uniform")
    return {
        "p_values": p_values,
        "kolmogorov_smirnov": {"statistic": float(ks.statistic), "p_value": float(ks.pvalue)},
        "false_alarms": alarms,
        "false_alarm_stated": false_alarm,
        # the probability of as many false alarms or more, if the stated rate is true
        "chance_of_so_many": float(stats.binom.sf(alarms - 1, len(p_values), false_alarm)),
        "below_5_percent": sum(p < 0.05 for p in p_values),
    }


class Pace:
    """A progress bar over all samples, with an estimate of the remaining time."""

    def __init__(self, console: Console, progress: Progress | None = None):
        self.console, self.progress, self.began, self.num_sampled = console, progress, time.perf_counter(), 0
        self.task = progress.add_task("", total=None) if progress else None

    def plan(self, what: str, samples: int) -> None:
        """Print the next step, its number of samples, and how long it takes at the pace so far."""
        pace = self.num_sampled / (time.perf_counter() - self.began)
        minutes = f", about {samples / pace / 60:.0f} minutes at {pace:,.0f} a second" if self.num_sampled else ""
        self.console.print(f"{what}: {samples:,} samples{minutes}")
        if self.progress and self.task is not None:
            self.progress.reset(self.task, description=what, total=samples)

    def advance(self, samples: int, what: str = "") -> None:
        """Add to the number of samples."""
        self.num_sampled += samples
        if self.progress and self.task is not None:
            self.progress.update(self.task, advance=samples, **({"description": what} if what else {}))


def recorded(
    workers: Executor,
    *,
    samples: int,
    runs: int,
    right_samples: int,
    right_runs: int,
    mutants: tuple[Mutant, ...],
    save: Callable[[dict[str, Any]], None],
    pace: Pace,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Record everything. save is called with the record after every step; before: the record of an earlier run."""
    record: dict[str, Any] = before or {"mutants": {}, "right_code": {}}

    fresh = [m.name for m in mutants if m.name not in record["mutants"]]
    pace.plan("total variation of each wrong version", len(fresh) * 2 * samples)
    for name, entry in zip(fresh, workers.map(measured, fresh, [samples] * len(fresh)), strict=True):
        record["mutants"][name] = entry
        save(record)
        pace.advance(2 * samples)

    large = [m.name for m in mutants if record["mutants"][m.name]["tv"] >= LARGE]
    ways = list(record["mutants"][mutants[0].name]["trials"])
    lists: dict[tuple[str, str], list[float]] = {}  # p-values by wrong version, or none, and trial
    tasks: list[tuple[str, str, int, int]] = []
    for name in large:
        entry = record["mutants"][name]
        lists[name, entry["trial"]] = entry.setdefault("p_values", [])
        tasks += [
            (name, entry["trial"], entry["samples"], seed) for seed in range(1 + len(entry["p_values"]), 1 + runs)
        ]
    for way in ways:
        lists["", way] = record["right_code"].get(way, {}).get("p_values", [])
        tasks += [("", way, right_samples, 10_000 + seed) for seed in range(len(lists["", way]), right_runs)]
    pace.plan("runs with wrong versions, then with the correct code", sum(task[2] for task in tasks))

    for (name, way, number, _), p in zip(tasks, workers.map(p_value, *zip(*tasks, strict=True)), strict=True):
        lists[name, way].append(p)
        if name:
            record["mutants"][name]["refuted"] = sum(p < FALSE_ALARM for p in lists[name, way])
        else:
            record["right_code"][way] = uniformity(lists[name, way], FALSE_ALARM)
        pace.advance(number, f"{name or 'correct code'}, {number:,} samples")
        save(record)
    record["verdict"] = verdict(record, runs)
    save(record)
    return record


def verdict(record: dict[str, Any], runs: int) -> dict[str, Any]:
    """The promises of the tests, and whether the record keeps them."""
    large = {name: entry for name, entry in record["mutants"].items() if entry["tv"] >= LARGE}
    missed = [name for name, entry in large.items() if entry["refuted"] < runs]
    right = record["right_code"].values()
    return {
        "large": len(large),
        "large_refuted_every_time": len(large) - len(missed),
        "missed": missed,
        "p_values_uniform": all(uniform["kolmogorov_smirnov"]["p_value"] >= 0.001 for uniform in right),
        "false_alarms_as_stated": all(uniform["chance_of_so_many"] >= 0.001 for uniform in right),
    }


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of the weights, so that results of other weights are not continued."""
    digest = hashlib.sha256()
    for weight in model.parameters():
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def shown(console: Console) -> Iterator[Pace]:
    """A `Pace`, with a bar on a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Pace(console, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000, help="to estimate each total variation (default 10000)")
    parser.add_argument("--runs", type=int, default=20, help="for each wrong version that has to be refuted")
    parser.add_argument(
        "--right-samples", type=int, default=2_000, help="of each run of the correct code (default 2000)"
    )
    parser.add_argument("--right-runs", type=int, default=200, help="of the correct code, for each way of sampling")
    parser.add_argument("--mutants", help="names, with commas between; default all that change the distribution")
    parser.add_argument("--device", help="cpu, cuda, …; default the GPU where there is one")
    parser.add_argument("--jobs", type=int, help="processes, 3 GB each; default one a core, at most 4; 1 on a GPU")
    parser.add_argument(
        "--json", type=Path, default=RESULTS, metavar="FILE", help="where to write (default %(default)s)"
    )
    options = parser.parse_args()

    # The trials decode chains with token verification, so wrong versions of other methods would change nothing.
    chosen = tuple(m for m in MUTANTS if m.effect == "distribution" and not m.only_beyond)
    if options.mutants:
        chosen = tuple(m for m in MUTANTS if m.name in options.mutants.split(","))
    pair = sd.load_pair(device=options.device)  # here only for the hash of its weights
    asked = {name: getattr(options, name) for name in ("samples", "runs", "right_samples", "right_runs")}
    settings = {
        **asked,
        "false_alarm": FALSE_ALARM,
        "weights": [fingerprint(model) for model in (pair.target, pair.draft)],
        "vocabulary": len(pair.tokenizer),
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = options.jobs or (min(4, cores) if pair.device.type == "cpu" else 1)
    how = options.device, max(options.samples, options.right_samples, *LADDER), max(1, cores // jobs)
    before = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else None
    if before is not None and before.get("settings") != settings:
        before = None
    began, earlier = time.time(), before["minutes"] if before else 0

    def save(record: dict[str, Any]) -> None:
        record["settings"] = settings
        record["machine"] = {
            "device": str(pair.device), "processes": jobs, "python": platform.python_version(),
            "torch": torch.__version__,
        }  # fmt: skip
        record["minutes"] = round(earlier + (time.time() - began) / 60, 1)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        whole = options.json.with_suffix(".part")  # an interrupt leaves a whole file
        whole.write_text(text, encoding="utf-8")
        whole.replace(options.json)

    new = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(jobs, new, initializer=begin, initargs=how) as workers,
        shown(Console(stderr=True)) as pace,
    ):
        try:
            record = recorded(workers, **asked, mutants=chosen, save=save, before=before, pace=pace)
        except BaseException:  # above all after an interrupt: drop tasks that have not begun
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    for name, entry in record["mutants"].items():
        refuted = (
            f"refuted in {entry['refuted']} of {len(entry['p_values'])} runs of {entry['samples']:,} samples"
            if "refuted" in entry
            else "too small to promise anything"
        )
        print(f"{name:24} TV {entry['tv']:.3f} ({entry['trial'].partition(',')[0]}): {refuted}")
    for name, right in record["right_code"].items():
        ks, alarms = right["kolmogorov_smirnov"]["p_value"], right["false_alarms"]
        print(f"correct code, {name}: {len(right['p_values'])} runs, uniform with p = {ks:.2g}, {alarms} false alarms")
    print(json.dumps(record["verdict"], indent=1))


if __name__ == "__main__":
    main()
