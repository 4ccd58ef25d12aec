"""What the samples of the suite say: latency, throughput and speedup of each way to decode, each with how sure it is.

Ratios to the baseline are taken sample by sample, on the same prompt and repeat. Percentiles of latency are taken
within one prompt length: over a mixture of lengths they would tell about the mixture. How many samples stand behind a
99th percentile is said with it, and its interval where there are enough of them for one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_ref.errors import SpecdecError
from specdec_ref.measurement.costs import Costs
from specdec_ref.measurement.intervals import Interval, quantile_interval, samples_needed
from specdec_ref.measurement.recording import Record
from specdec_ref.theory import best_k, expected_tokens

if TYPE_CHECKING:
    from rich.console import RenderResult

BASELINE = "baseline"


@dataclass(frozen=True)
class BenchmarkResult:
    """One way to decode on prompts of one length. Latencies in seconds, of whole requests; one request at a time.

    latency_p99_interval: 95 %, None with fewer than latency_p99_needs samples. time_to_first_token: median, prefill
    and the first round. throughput: all tokens / all seconds. acceptance_rate: accepted / judged, pooled; None where
    nothing was drafted. speedup: median ratio of tokens per second to the baseline's on the same prompt and repeat,
    with its 95 % interval (None under 6 ratios). decoding_speedup and its interval: the same after the first round,
    which is what predicted_speedup is about (None where it cannot be known). peak_memory: bytes, of tensors on CUDA;
    None on a CPU, see `workload.peak_memory`.
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

    speed_ratio: target step / draft step, 1/c (for prompt lookup: / the search of a round; None where the steps were
    not measured). parameters: 0 for prompt lookup. acceptance_rate, speedup, predicted_speedup: at best_k; both
    speedups are after the first round. predicted_best_k: what the formula would have chosen, of any k up to the
    largest measured.
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


@dataclass(frozen=True, repr=False)
class SuiteResult:
    """Everything that a suite found. facts: settings, models, machine. results: one for each way and length."""

    facts: Record
    results: tuple[BenchmarkResult, ...]
    drafts: tuple[DraftResult, ...]

    def of(self, config_name: str, prompt_length: str) -> BenchmarkResult:
        """One of the results. Raises SpecdecError where it was not measured."""
        for result in self.results:
            if (result.config_name, result.prompt_length) == (config_name, prompt_length):
                return result
        raise SpecdecError(f"config_name={config_name!r:.80}, prompt_length={prompt_length!r:.80}: was not measured")

    @property
    def lengths(self) -> tuple[str, ...]:
        """Names of the prompt lengths that were measured."""
        return tuple(dict.fromkeys(result.prompt_length for result in self.results))

    def __repr__(self) -> str:
        ways = ", ".join(dict.fromkeys(result.config_name for result in self.results))
        return f"SuiteResult({ways}; prompts: {', '.join(self.lengths)})"

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers."""
        return {
            "facts": self.facts,
            "results": [asdict(result) for result in self.results],
            "drafts": [asdict(draft) for draft in self.drafts],
        }

    def __rich_console__(self, *arguments: Any) -> "RenderResult":
        from specdec_ref.measurement.report import terminal_tables

        yield from terminal_tables(self)

    def _repr_html_(self) -> str:
        from specdec_ref.measurement.report import html_tables

        return html_tables(self)


def results_of(facts: Record, records: Sequence[Record]) -> SuiteResult:
    """Work out what `records` say; see `recording`. Raises SpecdecError where there is no sample of the baseline."""
    samples: dict[tuple[str, str], dict[tuple[int, int], Record]] = {}
    for r in records:
        if r["kind"] == "sample":
            samples.setdefault((r["config"], r["length"]), {}).setdefault((r["prompt"], r["repeat"]), r)
    costs = {(r["draft"], r["length"]): _costs(r) for r in records if r["kind"] == "costs"}
    results = []
    for length in facts["settings"]["lengths"]:
        theirs = samples.get((BASELINE, length), {})
        for one in facts["configurations"]:
            mine = samples.get((one["name"], length), {})
            both = [(mine[key], theirs[key]) for key in mine if key in theirs]
            if both:
                step = costs.get((one["draft"] or _any_draft(facts), length))
                results.append(_result(facts, one, length, list(mine.values()), both, step))
    if not results:
        raise SpecdecError("records: hold no sample of the baseline, so there is nothing to compare with")
    return SuiteResult(facts, tuple(results), tuple(_drafts(facts, results, samples, costs)))


def predicted(drafted: Iterable[tuple[int, int]], alpha: float, costs: Costs, c: float, overhead: float = 0.0) -> float:
    """Predicted speedup where rounds differ in length: `drafted` says how many rounds drafted how many tokens.

    E[tokens] / (n·c + v(n + 1) + o), numerator and denominator summed over the rounds. With the same n in all rounds
    it is `theory.predicted_speedup`. c, overhead: in target steps.
    """
    tokens = spent = 0.0
    for n, rounds in drafted:
        tokens += rounds * expected_tokens(alpha, n)
        spent += rounds * (n * c + costs.v(n + 1) + overhead)
    return tokens / spent


def _result(
    facts: Record, one: Record, length: str, ran: list[Record], both: list[tuple[Record, Record]], costs: Costs | None
) -> BenchmarkResult:
    seconds = [r["seconds"] for r in ran]
    tokens, judged = sum(r["tokens"] for r in ran), sum(r["judged"] for r in ran)
    alpha = sum(r["accepted"] for r in ran) / judged if judged else None
    drafted = _drafted(ran)
    rounds = sum(count for _, count in drafted)
    ratios = [_pace(mine) / _pace(theirs) for mine, theirs in both]
    after_first = [_later_pace(mine) / _later_pace(theirs) for mine, theirs in both if _lasts(mine) and _lasts(theirs)]
    formula = None
    if one["name"] == BASELINE:
        formula = 1.0
    elif costs is not None and alpha is not None:
        search = sum(r["draft_seconds"] for r in ran) / rounds / costs.target_step
        lookup = one["kind"] == "lookup"
        formula = predicted(drafted, alpha, costs, 0.0 if lookup else costs.c, search if lookup else 0.0)
    p50, p95, p99 = (float(p) for p in np.percentile(seconds, (50, 95, 99)))
    return BenchmarkResult(
        config_name=one["name"],
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


def _drafts(
    facts: Record,
    results: list[BenchmarkResult],
    samples: dict[tuple[str, str], dict[tuple[int, int], Record]],
    costs: dict[tuple[str, str], Costs],
) -> Iterable[DraftResult]:
    """Each draft at its best k, on prompts of the middle length."""
    lengths = list(dict.fromkeys(r.prompt_length for r in results))
    length = lengths[len(lengths) // 2]
    found = {r.config_name: r for r in results if r.prompt_length == length}
    names = dict.fromkeys((c["kind"], c["draft"]) for c in facts["configurations"] if c["kind"] in ("fixed", "lookup"))
    for kind, draft in names:
        fixed = [c for c in facts["configurations"] if (c["kind"], c["draft"]) == (kind, draft) and c["name"] in found]
        if not fixed:
            continue
        speed = {c["k"]: found[c["name"]].decoding_speedup or found[c["name"]].speedup for c in fixed}
        k = max(speed, key=lambda n: speed[n])
        best = next(found[c["name"]] for c in fixed if c["k"] == k)
        step = costs.get((draft or _any_draft(facts), length))
        ran = list(samples[best.config_name, length].values())
        search = sum(r["draft_seconds"] for r in ran) / sum(count for _, count in _drafted(ran))
        ratio = chosen = None
        if step is not None:
            ratio = 1 / step.c if kind == "fixed" else step.target_step / search if search else None
        if kind == "fixed" and step is not None and best.acceptance_rate is not None:
            chosen = best_k(best.acceptance_rate, step.c, step.v, max_k=max(step.scoring) - 1)
        parameters = facts["drafts"][draft]["parameters"] if draft else 0
        name = draft or "prompt lookup"
        interval = best.decoding_speedup_interval if best.decoding_speedup else best.speedup_interval
        yield DraftResult(
            name, parameters, ratio, best.acceptance_rate, k, speed[k], interval, best.predicted_speedup, chosen
        )


def _costs(record: Record) -> Costs:
    scoring = {int(n): seconds for n, seconds in record["scoring"].items()}
    return Costs(record["target_step"], record["draft_step"], scoring, record["context"])


def _any_draft(facts: Record) -> str:
    """A draft with whose costs the target's were measured: any will do, they are the target's."""
    return next(iter(facts["drafts"]), "")


def _drafted(ran: Iterable[Record]) -> list[tuple[int, int]]:
    return [(int(n), int(count)) for r in ran for n, count in r["drafted"]]


def _pace(r: Record) -> float:
    return float(r["tokens"] / r["seconds"])


def _lasts(r: Record) -> bool:
    return bool(r["tokens"] > r["first_tokens"])


def _later_pace(r: Record) -> float:
    return float((r["tokens"] - r["first_tokens"]) / (r["seconds"] - r["first_seconds"]))
