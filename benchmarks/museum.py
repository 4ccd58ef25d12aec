"""The museum on a trained pair, recorded: what experiment sees of every mistake, and whether it cries wolf.

    python benchmarks/museum.py [--samples N] [--runs 20] [--right-runs 200] [--json FILE] [--device cuda]

For every wrong version that changes the distribution: its total variation on this pair, and, where that is 0.03 or
more, whether the empirical test refutes it in each of 20 runs. For the right code: 200 runs, of which the p-values have
to be uniform (Kolmogorov and Smirnov) and the false alarms no more than stated. The file is written after every run,
and a run that was cut short goes on where it ended if the arguments are the same.

Millions of samples come after the same two prompts, so the models' scores are remembered by the tokens that a cache
would hold (`Remembered`); a wrong version of the cache itself runs on real caches.
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scipy import stats

import specdec_ref as sd
from specdec_ref.equivalence.empirical import with_fewer
from specdec_ref.equivalence.greedy import greedy_agreement
from specdec_ref.equivalence.museum_empirical import Trial, remembering, trials
from specdec_ref.equivalence.mutants import MUTANTS, Mutant
from specdec_ref.equivalence.result import Equivalence

LARGE = 0.03
"""A total variation that has to be found every time."""

FALSE_ALARM = 0.001
LADDER = 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 8_000, 11_000, 16_000, 22_000, 32_000, 45_000, 64_000, 90_000
"""Samples of a run: the more a wrong version is off, the fewer do."""

RESULTS = Path(__file__).parent / "results" / "museum.json"


def total_variation(result: Equivalence) -> float:
    """Of the sampler from the target, by an estimate that chance does not make larger, as it does the measured one.

    One half of the samples says which outcomes come too often, the other half by how much; then the other way round.
    """
    excess = drawn = 0.0
    for prompt in result.prompts:
        for first, second in (prompt.halves, prompt.halves[::-1]):
            often = first > first.sum() * prompt.probabilities
            excess += second[often].sum() - second.sum() * prompt.probabilities[often].sum()
            drawn += second.sum()
    return float(excess / drawn)


class Sizes:
    """The two trials at any sample size, settled when first asked for. They share samplers, whose memory is large."""

    def __init__(self, pair: sd.Pair, largest: int):
        self.real = trials(pair, samples=largest, false_alarm=FALSE_ALARM)
        self.remembering = remembering(pair, self.real)

    def of(self, samples: int, mutant: Mutant | None = None) -> tuple[Trial, ...]:
        """Both trials with so many samples each; on real caches for a wrong version of the cache."""
        those = self.real if mutant and mutant.where.startswith("cache.") else self.remembering
        return tuple(replace(trial, plan=with_fewer(trial.plan, samples)) for trial in those)

    def finding(self, tv: float, number: int, mutant: Mutant) -> tuple[int, Trial]:
        """The first of `LADDER`, and trial `number` of that size, that finds 0.8 of this total variation."""
        for samples in LADDER:
            trial = self.of(samples, mutant)[number]
            if trial.plan.says_something and trial.plan.detectable <= 0.8 * tv:
                break
        return samples, trial


def measure(mutant: Mutant, pair: sd.Pair, both: tuple[Trial, ...]) -> dict[str, Any]:
    """One run of each trial under a wrong version, and greedy decoding; tv is that of the trial that shows more."""
    found: dict[str, Any] = {}
    with mutant.installed():
        for trial in both:
            result = trial.run()
            found[trial.name] = {
                "tv": total_variation(result),
                "tv_interval": list(result.tv_interval),
                "tv_measured": result.tv,
                "tv_by_chance": result.tv_by_chance,
                "p_value": result.p_value,
                "refuted": not result.consistent,
            }
        greedy = greedy_agreement(pair, [tree.prompt for tree in both[0].plan.trees], 32)
    name = max(found, key=lambda one: found[one]["tv"])
    return {"tv": found[name]["tv"], "trial": name, "trials": found, "greedy_consistent": greedy.consistent}


def uniformity(p_values: list[float], false_alarm: float) -> dict[str, Any]:
    """What the p-values of the right code say about the test itself."""
    alarms = sum(p < false_alarm for p in p_values)
    ks = stats.kstest(p_values, "uniform")
    return {
        "p_values": p_values,
        "kolmogorov_smirnov": {"statistic": float(ks.statistic), "p_value": float(ks.pvalue)},
        "false_alarms": alarms,
        "false_alarm_stated": false_alarm,
        # the chance of as many false alarms or more, were the stated rate true
        "chance_of_so_many": float(stats.binom.sf(alarms - 1, len(p_values), false_alarm)),
        "below_5_percent": sum(p < 0.05 for p in p_values),
    }


class Pace:
    """A bar over all samples that are to come, and from it how long the rest will take."""

    def __init__(self, console: Console, progress: Progress | None = None):
        self.console, self.progress, self.began, self.done = console, progress, time.perf_counter(), 0
        self.task = progress.add_task("", total=None) if progress else None

    def plan(self, what: str, samples: int) -> None:
        """Say what comes now, how many samples it takes, and how long that will be at the pace so far."""
        pace = self.done / (time.perf_counter() - self.began)
        minutes = f", about {samples / pace / 60:.0f} minutes at {pace:,.0f} a second" if self.done else ""
        self.console.print(f"{what}: {samples:,} samples{minutes}")
        if self.progress and self.task is not None:
            self.progress.reset(self.task, description=what, total=samples)

    def drawn(self, samples: int, what: str = "") -> None:
        """So many more are done."""
        self.done += samples
        if self.progress and self.task is not None:
            self.progress.update(self.task, advance=samples, **({"description": what} if what else {}))


def recorded(
    pair: sd.Pair,
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
    """All of it. save is called after every step with what there is; before: what an earlier run left."""
    sizes = Sizes(pair, max(samples, right_samples, *LADDER))
    record: dict[str, Any] = before or {"mutants": {}, "right_code": {}}
    names = [trial.name for trial in sizes.of(samples)]

    fresh = [mutant for mutant in mutants if mutant.name not in record["mutants"]]
    pace.plan("total variation of each wrong version", len(fresh) * len(names) * samples)
    for mutant in fresh:
        record["mutants"][mutant.name] = measure(mutant, pair, sizes.of(samples, mutant))
        save(record)
        pace.drawn(len(names) * samples)

    trying: list[tuple[Mutant, dict[str, Any], Trial]] = []
    for mutant in mutants:
        entry = record["mutants"][mutant.name]
        if entry["tv"] >= LARGE:
            enough, trial = sizes.finding(entry["tv"], names.index(entry["trial"]), mutant)
            entry |= {"samples": enough, "detectable_tv": trial.plan.detectable, "runs": runs}
            entry.setdefault("p_values", [])
            trying.append((mutant, entry, trial))
    left = sum((runs - len(entry["p_values"])) * entry["samples"] for _, entry, _ in trying)
    done = {name: record["right_code"].get(name, {}).get("p_values", []) for name in names}
    right = sum(right_runs - len(p_values) for p_values in done.values()) * right_samples
    pace.plan("refuting those that are far off, then the right code", left + right)

    for mutant, entry, trial in trying:
        with mutant.installed():
            for seed in range(len(entry["p_values"]) + 1, runs + 1):
                entry["p_values"].append(trial.run(seed).p_value)
                entry["refuted"] = sum(p < FALSE_ALARM for p in entry["p_values"])
                save(record)
                pace.drawn(entry["samples"], f"{mutant.name}, {entry['samples']:,} samples")

    for trial in sizes.of(right_samples):
        p_values = done[trial.name]
        for seed in range(len(p_values), right_runs):
            p_values.append(trial.run(10_000 + seed).p_value)
            record["right_code"][trial.name] = uniformity(p_values, FALSE_ALARM)
            pace.drawn(right_samples, f"right code, {trial.name}")
            save(record)
    record["verdict"] = verdict(record)
    save(record)
    return record


def verdict(record: dict[str, Any]) -> dict[str, Any]:
    """What was promised, and whether it was kept."""
    large = {name: entry for name, entry in record["mutants"].items() if "refuted" in entry}
    missed = [name for name, entry in large.items() if entry["refuted"] < entry["runs"]]
    right = record["right_code"].values()
    return {
        "large": len(large),
        "large_refuted_every_time": len(large) - len(missed),
        "missed": missed,
        "p_values_uniform": all(one["kolmogorov_smirnov"]["p_value"] >= 0.001 for one in right),
        "false_alarms_as_stated": all(one["chance_of_so_many"] >= 0.001 for one in right),
    }


def fingerprint(model: torch.nn.Module) -> str:
    """Changes with every training, so that what an earlier run measured of other weights is not taken for this."""
    digest = hashlib.sha256()
    for weight in model.parameters():
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def shown(console: Console) -> Iterator[Pace]:
    """A pace with its bar, where somebody looks."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Pace(console, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000, help="to measure each total variation (default 10000)")
    parser.add_argument("--runs", type=int, default=20, help="for each wrong version that should be found")
    parser.add_argument("--right-samples", type=int, default=2_000, help="of each run of the right code (default 2000)")
    parser.add_argument("--right-runs", type=int, default=200, help="of the right code, for each way of sampling")
    parser.add_argument("--mutants", help="names, with commas between; default all that change the distribution")
    parser.add_argument("--device", help="cpu, cuda, …; default the GPU where there is one")
    parser.add_argument(
        "--json", type=Path, default=RESULTS, metavar="FILE", help="where to write (default %(default)s)"
    )
    options = parser.parse_args()

    chosen = tuple(m for m in MUTANTS if m.effect == "distribution")
    if options.mutants:
        chosen = tuple(m for m in MUTANTS if m.name in options.mutants.split(","))
    pair = sd.load_pair(device=options.device)
    asked = {name: getattr(options, name) for name in ("samples", "runs", "right_samples", "right_runs")}
    settings = {
        **asked,
        "false_alarm": FALSE_ALARM,
        "weights": [fingerprint(model) for model in (pair.target, pair.draft)],
        "vocabulary": len(pair.tokenizer),
    }
    before = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else None
    if before is not None and before.get("settings") != settings:
        before = None
    began, earlier = time.time(), before["minutes"] if before else 0

    def save(record: dict[str, Any]) -> None:
        record["settings"] = settings
        record["machine"] = {
            "device": str(pair.device), "threads": torch.get_num_threads(), "python": platform.python_version(),
            "torch": torch.__version__,
        }  # fmt: skip
        record["minutes"] = round(earlier + (time.time() - began) / 60, 1)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        whole = options.json.with_suffix(".part")  # never half a file, should it end here
        whole.write_text(text, encoding="utf-8")
        whole.replace(options.json)

    with shown(Console(stderr=True)) as pace:
        record = recorded(pair, **asked, mutants=chosen, save=save, before=before, pace=pace)
    for name, entry in record["mutants"].items():
        found = (
            f"refuted in {entry['refuted']} of {entry['runs']} runs" if "runs" in entry else "too small for a promise"
        )
        print(f"{name:24} TV {entry['tv']:.3f} ({entry['trial'].partition(',')[0]}): {found}")
    for name, one in record["right_code"].items():
        ks, alarms = one["kolmogorov_smirnov"]["p_value"], one["false_alarms"]
        print(f"right code, {name}: {len(one['p_values'])} runs, uniform with p = {ks:.2g}, {alarms} false alarms")
    print(json.dumps(record["verdict"], indent=1))


if __name__ == "__main__":
    main()
