"""Compute latency, throughput and speedup of each way to decode, with their uncertainty, from the suite's samples.

Ratios to the baseline are taken sample by sample, on the same prompt and repeat. Percentiles of latency are taken
within one prompt length, because over a mixture of lengths they would describe the mixture. A 99th percentile comes
with its number of samples, and with an interval where there are enough samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np

from specdec_lab.measurement.costs import Costs
from specdec_lab.measurement.intervals import Interval, quantile_interval, samples_needed
from specdec_lab.measurement.recording import Record
from specdec_ref.theory import best_k, expected_tokens

BASELINE = "baseline"
AT_ONCE = "one pass", "tree", "lookup"
"""Kinds of drafting for which k tokens do not cost k steps of a draft."""


@dataclass(frozen=True)
class BenchmarkResult:
    """One way to decode on prompts of one length. Latencies are of whole requests, in seconds, one request at a time.

    Attributes:
        latency_p99_interval: 95 %; None with fewer samples than `latency_p99_needs`.
        time_to_first_token: median; prefill and the first round.
        throughput: all tokens / all seconds.
        acceptance_rate: accepted / examined over all samples; None where nothing was drafted.
        speedup: median ratio of tokens per second to the baseline's on the same prompt and repeat, with its 95 %
            interval (None with fewer than 6 ratios).
        decoding_speedup: the same after the first round, which is what `predicted_speedup` predicts; None where no
            sample has a second round.
        peak_memory: bytes of tensors on CUDA; None on a CPU.
    """

    config_name: str
    prompt_length: str
    prompt_tokens: int
    samples: int
    latency_mean: float
    latency_p50: float
    latency_p95: float
    latency_p99: float
    latency_p99_interval: Interval | None
    latency_p99_needs: int
    time_to_first_token: float
    throughput: float
    tokens_generated: int
    acceptance_rate: float | None
    tokens_per_round: float
    speedup: float
    speedup_interval: Interval | None
    decoding_speedup: float | None
    decoding_speedup_interval: Interval | None
    predicted_speedup: float | None
    peak_memory: int | None


@dataclass(frozen=True)
class DraftResult:
    """One draft at its best k among those measured, on prompts of one length.

    Attributes:
        parameters: number of parameters; 0 for drafters without a network.
        speed_ratio: target step / draft step, 1/c; None if the steps were not measured. If all tokens come from one
            pass or one search, target step / that pass or search.
        acceptance_rate, speedup, predicted_speedup: at `best_k`; both speedups are after the first round.
        predicted_best_k: the best k by the formula, up to the largest measured k; None if k tokens do not cost k steps.
    """

    name: str
    parameters: int
    speed_ratio: float | None
    acceptance_rate: float | None
    best_k: int
    speedup: float
    speedup_interval: Interval | None
    predicted_speedup: float | None
    predicted_best_k: int | None


def reaches(interval: Interval | None, figure: float) -> bool:
    """Whether an interval reaches the best value, so that this run cannot rank the two."""
    return interval is not None and interval[1] >= figure


def first_names(names: list[str]) -> str:
    """The first three names, and the number of further ones."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


Samples = dict[tuple[str, str], dict[tuple[int, int], Record]]
"""(way, prompt length) → (prompt, repeat) → record."""


def benchmark_results(facts: Record, records: Iterable[Record]) -> list[BenchmarkResult]:
    """One result for each way and prompt length that has samples on the same prompts as the baseline."""
    samples, costs = _samples(records), _step_costs(records)
    results = []
    for length in facts["settings"]["lengths"]:
        baseline = samples.get((BASELINE, length), {})
        for way in facts["configurations"]:
            ran = samples.get((way["name"], length), {})
            both = [(ran[key], baseline[key]) for key in ran if key in baseline]
            if both:
                step = costs.get((way["draft"] or _any_draft(facts), length))
                results.append(_result(facts, way, length, list(ran.values()), both, step))
    return results


def _samples(records: Iterable[Record]) -> Samples:
    """The first sample of each way, length, prompt and repeat."""
    samples: Samples = {}
    for r in records:
        if r["kind"] == "sample":
            samples.setdefault((r["config"], r["length"]), {}).setdefault((r["prompt"], r["repeat"]), r)
    return samples


def _step_costs(records: Iterable[Record]) -> dict[tuple[str, str], Costs]:
    """Step costs by draft and prompt length."""
    return {(r["draft"], r["length"]): _costs(r) for r in records if r["kind"] == "costs"}


def predicted(drafted: Iterable[tuple[int, int]], alpha: float, costs: Costs, c: float, overhead: float = 0.0) -> float:
    """Predicted speedup of rounds with different numbers of drafted tokens: Σ E[tokens] / Σ (n·c + v(n + 1) + o).

    With the same n in all rounds it is `theory.predicted_speedup`. c and overhead are in target steps. `drafted` has
    the number of rounds for each number of drafted tokens.
    """
    tokens = spent = 0.0
    for n, rounds in drafted:
        tokens += rounds * expected_tokens(alpha, n)
        spent += rounds * (n * c + costs.v(n + 1) + overhead)
    return tokens / spent


def _result(
    facts: Record, way: Record, length: str, ran: list[Record], both: list[tuple[Record, Record]], costs: Costs | None
) -> BenchmarkResult:
    seconds = [r["seconds"] for r in ran]
    tokens, examined = sum(r["tokens"] for r in ran), sum(r["examined"] for r in ran)
    alpha = sum(r["accepted"] for r in ran) / examined if examined else None
    drafted = _drafted(ran)
    rounds = sum(count for _, count in drafted)
    ratios = [_pace(mine) / _pace(theirs) for mine, theirs in both]
    after_first = [_later_pace(mine) / _later_pace(theirs) for mine, theirs in both if _lasts(mine) and _lasts(theirs)]
    formula = None
    if way["name"] == BASELINE:
        formula = 1.0
    elif costs is not None and alpha is not None and way["kind"] != "tree":
        one_pass = sum(r["draft_seconds"] for r in ran) / rounds / costs.target_step
        at_once = way["kind"] in AT_ONCE
        formula = predicted(drafted, alpha, costs, 0.0 if at_once else costs.c, one_pass if at_once else 0.0)
    p50, p95, p99 = (float(p) for p in np.percentile(seconds, (50, 95, 99)))
    return BenchmarkResult(
        config_name=way["name"],
        prompt_length=length,
        prompt_tokens=facts["settings"]["lengths"][length],
        samples=len(ran),
        latency_mean=float(np.mean(seconds)),
        latency_p50=p50,
        latency_p95=p95,
        latency_p99=p99,
        latency_p99_interval=quantile_interval(seconds, 0.99),
        latency_p99_needs=samples_needed(0.99),
        time_to_first_token=median(r["first_seconds"] for r in ran),
        throughput=tokens / sum(seconds),
        tokens_generated=tokens,
        acceptance_rate=alpha,
        tokens_per_round=tokens / rounds,
        speedup=median(ratios),
        speedup_interval=quantile_interval(ratios, 0.5),
        decoding_speedup=median(after_first) if after_first else None,
        decoding_speedup_interval=quantile_interval(after_first, 0.5),
        predicted_speedup=formula,
        peak_memory=max(r["memory"] for r in ran) if facts["machine"]["device"] == "cuda" else None,
    )


def draft_results(facts: Record, results: list[BenchmarkResult], records: Iterable[Record]) -> list[DraftResult]:
    """Each draft at its best k, on prompts of the middle length."""
    samples, costs = _samples(records), _step_costs(records)
    lengths = list(dict.fromkeys(r.prompt_length for r in results))
    length = lengths[len(lengths) // 2]
    by_name = {r.config_name: r for r in results if r.prompt_length == length}
    fixed = [c for c in facts["configurations"] if c["kind"] in ("fixed", *AT_ONCE) and c["name"] in by_name]
    drafts = []
    for kind, draft in dict.fromkeys((c["kind"], c["draft"]) for c in fixed):
        by_k = {c["k"]: by_name[c["name"]] for c in fixed if (c["kind"], c["draft"]) == (kind, draft)}
        k = max(by_k, key=lambda n: by_k[n].decoding_speedup or by_k[n].speedup)
        best = by_k[k]
        step = costs.get((draft or _any_draft(facts), length))
        ran = list(samples[best.config_name, length].values())
        drafts.append(_draft_result(facts, kind, draft, k, best, step, ran))
    return drafts


def _draft_result(
    facts: Record, kind: str, draft: str, k: int, best: BenchmarkResult, costs: Costs | None, ran: list[Record]
) -> DraftResult:
    """One draft, from its best result and that result's samples. draft: '' for a draft that only needs the text."""
    ratio = predicted_k = None
    if costs is not None and kind not in AT_ONCE:
        ratio = 1 / costs.c
        if best.acceptance_rate is not None:
            predicted_k = best_k(best.acceptance_rate, costs.c, costs.v, max_k=max(costs.scoring) - 1)
    elif costs is not None:
        search = sum(r["draft_seconds"] for r in ran) / sum(count for _, count in _drafted(ran))
        ratio = costs.target_step / search if search else None
    return DraftResult(
        name=draft or "prompt lookup",
        parameters=facts["drafts"].get(draft, {"parameters": 0})["parameters"],
        speed_ratio=ratio,
        acceptance_rate=best.acceptance_rate,
        best_k=k,
        speedup=best.decoding_speedup or best.speedup,
        speedup_interval=best.decoding_speedup_interval if best.decoding_speedup else best.speedup_interval,
        predicted_speedup=best.predicted_speedup,
        predicted_best_k=predicted_k,
    )


def _costs(record: Record) -> Costs:
    scoring = {int(n): seconds for n, seconds in record["scoring"].items()}
    return Costs(record["target_step"], record["draft_step"], scoring, record["context"])


def _any_draft(facts: Record) -> str:
    """Any draft for which the target's costs were measured."""
    return next(iter(facts["drafts"]), "")


def _drafted(ran: Iterable[Record]) -> list[tuple[int, int]]:
    return [(int(n), int(count)) for r in ran for n, count in r["drafted"]]


def _pace(r: Record) -> float:
    return float(r["tokens"] / r["seconds"])


def _lasts(r: Record) -> bool:
    return bool(r["tokens"] > r["first_tokens"])


def _later_pace(r: Record) -> float:
    return float((r["tokens"] - r["first_tokens"]) / (r["seconds"] - r["first_seconds"]))
