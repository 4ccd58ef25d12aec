"""The result of the benchmark suite, and its tables: the same cells in a terminal, in a notebook and in the report."""

import html
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from specdec_lab.measurement.intervals import Interval
from specdec_lab.measurement.recording import Record
from specdec_lab.measurement.results import (
    BASELINE,
    BenchmarkResult,
    DraftResult,
    benchmark_results,
    draft_results,
    first_names,
    reaches,
)
from specdec_lab.measurement.tables_shown import html_table, rich_table
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from rich.console import RenderResult
    from rich.table import Table

Grid = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""

DASH = "–"
SPEED = ["way", "tok/s", "speedup", "95 %", "decoding", "formula", "α", "round"]
LATENCY = ["way", "mean", "p50", "p95", "p99", "95 % of p99", "first", "requests"]
DRAFTS = ["draft", "size", "1/c", "α", "k", "speedup", "95 %", "formula", "its k"]
NOTES = (
    "speedup: median ratio of tokens per second to the baseline's on the same prompt and repeat, whole requests · "
    "decoding: the same after the first round, which is what the formula predicts · α: accepted / examined · round: "
    "tokens per round · first: time to the first token · MiB: peak of the tensors on CUDA (on a CPU, see "
    "memory_profile) · 95 %: between two of the samples; – or 'needs n' where there are too few samples"
)
DRAFT_NOTES = (
    "1/c: target step / draft step (parallel head, tree, suffix, lookup: / drafting of a round) · α: accepted / "
    "examined · k: the best one measured · formula: predicted speedup · its k: the best one by the formula"
)


@dataclass(frozen=True, repr=False)
class SuiteResult:
    """All results of a suite.

    Attributes:
        facts: settings, models, machine.
        results: one for each way to decode and prompt length.
        drafts: one for each draft, on prompts of the middle length.
    """

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

    @property
    def headline(self) -> str:
        """One sentence: the fastest way and its speedup."""
        speculative = [r for r in self.results if r.config_name != BASELINE]
        if not speculative:
            return "Only the baseline was measured."
        best = max(speculative, key=lambda r: r.speedup)
        interval = f" (95 %: {_range(best.speedup_interval)})" if best.speedup_interval else ""
        same_length = [r for r in speculative if r is not best and r.prompt_length == best.prompt_length]
        near = [r.config_name for r in same_length if reaches(r.speedup_interval, best.speedup)]
        within_noise = f" Within noise: {first_names(near)}." if near else ""
        below = sum(_is_slower(r) for r in speculative)
        slower = f" {below} of {len(speculative)} were slower than the baseline." if below else ""
        return (
            f"Fastest: {best.config_name} on {best.prompt_length} prompts, {best.speedup:.2f} times the "
            f"baseline{interval}, {best.samples} requests.{within_noise}{slower}"
        )

    def grids(self) -> list[Grid]:
        """All tables: speed and latency for each prompt length, then the drafts."""
        tables: list[Grid] = []
        for length in self.lengths:
            rows = [r for r in self.results if r.prompt_length == length]
            prompts = f"{length} prompts ({rows[0].prompt_tokens} tokens)"
            tables.append((f"speed, {prompts}", SPEED, [_speed_cells(r) for r in rows]))
            title, columns = f"latency of a request in ms, {prompts}", LATENCY
            cells = [_latency_cells(r) for r in rows]
            if any(r.peak_memory is not None for r in rows):
                columns = [*columns, "MiB"]
                cells = [[*row, f"{(r.peak_memory or 0) / 2**20:.0f}"] for row, r in zip(cells, rows, strict=True)]
            tables.append((title, columns, cells))
        return [*tables, self.draft_grid()] if self.drafts else tables

    def draft_grid(self) -> Grid:
        """The table of the drafts alone."""
        return "drafts, each at its best k, after the first round", DRAFTS, [_draft_cells(d) for d in self.drafts]

    def terminal_tables(self) -> "list[Table | str]":
        """Headline, tables and notes, to be printed by `rich`."""
        tables: list[Table | str] = [self.headline, ""]
        for grid in self.grids():
            tables += [rich_table(*grid), ""]
        return [*tables, NOTES, DRAFT_NOTES]

    def __rich_console__(self, *arguments: Any) -> "RenderResult":
        yield from self.terminal_tables()

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline)}</p>" + "".join(html_table(*grid) for grid in self.grids())


def results_of(facts: Record, records: list[Record]) -> SuiteResult:
    """Compute the results of `records`; see `recording`. Raises SpecdecError without a sample of the baseline."""
    results = benchmark_results(facts, records)
    if not results:
        raise SpecdecError("records: hold no sample of the baseline, so there is nothing to compare with")
    return SuiteResult(facts, tuple(results), tuple(draft_results(facts, results, records)))


def _speed_cells(r: BenchmarkResult) -> list[str]:
    return [
        r.config_name,
        f"{r.throughput:.0f}",
        f"{r.speedup:.2f}",
        _range(r.speedup_interval),
        _number(r.decoding_speedup),
        _number(r.predicted_speedup),
        _share(r.acceptance_rate),
        f"{r.tokens_per_round:.2f}",
    ]


def _latency_cells(r: BenchmarkResult) -> list[str]:
    interval = f"needs {r.latency_p99_needs}"
    if r.latency_p99_interval is not None:
        interval = "–".join(f"{1e3 * end:.0f}" for end in r.latency_p99_interval)
    times = [f"{1e3 * t:.0f}" for t in (r.latency_mean, r.latency_p50, r.latency_p95, r.latency_p99)]
    return [r.config_name, *times, interval, f"{1e3 * r.time_to_first_token:.1f}", str(r.samples)]


def _draft_cells(d: DraftResult) -> list[str]:
    return [
        d.name,
        f"{d.parameters / 1e6:.2f} M" if d.parameters else "none",
        DASH if d.speed_ratio is None else f"{d.speed_ratio:.{0 if d.speed_ratio >= 100 else 1}f}×",
        _share(d.acceptance_rate),
        str(d.best_k),
        f"{d.speedup:.2f}",
        _range(d.speedup_interval),
        _number(d.predicted_speedup),
        DASH if d.predicted_best_k is None else str(d.predicted_best_k),
    ]


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return DASH if value is None else f"{value:.0%}"


def _is_slower(result: BenchmarkResult) -> bool:
    """Whether a way to decode is slower than the baseline, also at the upper end of its interval."""
    highest = result.speedup_interval[1] if result.speedup_interval else result.speedup
    return highest < 1


def _range(interval: Interval | None) -> str:
    return DASH if interval is None else f"{interval[0]:.2f}–{interval[1]:.2f}"
