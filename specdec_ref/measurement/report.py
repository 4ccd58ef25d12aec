"""The suite's result to look at: tables for terminal and notebook, and a report that is one HTML file.

The report needs nothing but itself: styles are inside, figures are inside, nothing is loaded and no script runs.
"""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from specdec_ref.measurement import pictures
from specdec_ref.measurement.pictures import DASH
from specdec_ref.measurement.results import BASELINE, BenchmarkResult, SuiteResult
from specdec_ref.measurement.showing import html_table, rich_table
from specdec_ref.measurement.workload import machine_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdec_ref.measurement.intervals import Interval

Grid = tuple[str, "Columns", list[list[str]]]
"""Title, columns, rows."""


class Columns(NamedTuple):
    """Names of columns: in full, and for a terminal, where 80 characters must do and the last may be left out."""

    full: list[str]
    short: list[str]


SPEED = Columns(
    "way;tokens/s;speedup;95 %;after first round;formula;accepted;tokens/round;memory on CUDA".split(";"),
    "way;tok/s;speedup;95 %;decoding;formula;α;round".split(";"),
)
LATENCY = Columns(
    "way;mean;p50;p95;p99;95 % of p99;to first token;requests".split(";"),
    "way;mean;p50;p95;p99;95 % of p99;first;requests".split(";"),
)
DRAFTS = Columns(
    "draft;parameters;times as fast;accepted;best k;speedup;95 %;formula;formula's k".split(";"),
    "draft;size;1/c;α;k;speedup;95 %;formula;its k".split(";"),
)

NOTES = (
    "Speedup: median of the ratios of tokens per second to the baseline's on the same prompt and repeat, of whole "
    "requests. After first round: the same without prefill and first round, which the formula is about. Formula: from "
    "measured acceptance, c and v. 95 %: an interval between two of the samples; a dash, or 'needs' so many requests, "
    "where there are too few. Memory: the peak of this process's tensors, measured on CUDA; on a CPU, where no such "
    "peak is kept, see memory_profile. Drafts: times as fast is 1/c, target step / draft step (for prompt lookup: "
    "/ one search); their speedups are those after the first round."
)
SHORT_NOTES = (
    "speedup: of whole requests, median of ratios · decoding: speedup after the first round, which the formula "
    "predicts · α: accepted / judged · round: tokens per round · 1/c: target step / draft step · k: the best one "
    "measured · its k: the best one by the formula · needs n: an interval takes n requests"
)
DRAFT_NOTES = (
    "1/c: target step / draft step · α: accepted / judged · k: the best one measured · formula: predicted speedup · "
    "its k: the best one by the formula"
)

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #57606a; --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #9198a1; --line: #3d444d; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.55 system-ui, sans-serif; max-width: 900px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; margin: 0.6rem 0 }
caption { text-align: left; font-weight: 600; padding: 0.4rem 0; white-space: nowrap }
th, td { padding: 3px 10px 3px 0; white-space: nowrap } thead th { border-bottom: 1px solid var(--line) }
tbody tr:hover { background: color-mix(in srgb, var(--ink) 7%, transparent) }
p.note, footer { color: var(--faint); font-size: 13px } figure { margin: 1rem 0 }
"""


def terminal_tables(result: SuiteResult) -> list[Table | str]:
    """Everything in words and figures, for `rich`."""
    tables: list[Table | str] = [headline(result), ""]
    for title, columns, rows in grids(result):
        tables += [rich_table(title, columns.short, [row[: len(columns.short)] for row in rows]), ""]
    return [*tables, SHORT_NOTES]


def draft_table(result: SuiteResult) -> Table:
    """The drafts alone, for the terminal."""
    return rich_table("drafts, each at its best k, after the first round", DRAFTS.short, _draft_rows(result))


def html_tables(result: SuiteResult) -> str:
    """The same, for a notebook."""
    tables = "".join(html_table(title, columns.full, rows) for title, columns, rows in grids(result))
    return f"<p>{html.escape(headline(result))}</p>{tables}"


def headline(result: SuiteResult) -> str:
    """The one thing to know: who was fastest, and by how much."""
    others = [r for r in result.results if r.config_name != BASELINE]
    if not others:
        return "Only the baseline was measured."
    best = max(others, key=lambda r: r.speedup)
    sure = f" (95 %: {_range(best.speedup_interval)})" if best.speedup_interval else ""
    beside = [r for r in others if r is not best and r.prompt_length == best.prompt_length]
    near = [r.config_name for r in beside if pictures.reaches(r.speedup_interval, best.speedup)]
    near_by = f" Within noise: {pictures.named(near)}." if near else ""
    below = sum(r.speedup < 1 for r in others)
    slower = f" {below} of {len(others)} were slower than the baseline." if below else ""
    return (
        f"Fastest: {best.config_name} on {best.prompt_length} prompts, {best.speedup:.2f} times the baseline{sure}, "
        f"{best.samples} requests.{near_by}{slower}"
    )


def grids(result: SuiteResult) -> list[Grid]:
    """All tables: speed and latency for each prompt length, then the drafts."""
    found: list[Grid] = []
    for length in result.lengths:
        rows = [r for r in result.results if r.prompt_length == length]
        words = f"{length} prompts ({rows[0].prompt_tokens} tokens)"
        found.append((f"speed, {words}", SPEED, [_speed(r) for r in rows]))
        found.append((f"latency of a request in ms, {words}", LATENCY, [_latency(r) for r in rows]))
    if result.drafts:
        found.append(("drafts, each at its best k, after the first round", DRAFTS, _draft_rows(result)))
    return found


def _speed(r: BenchmarkResult) -> list[str]:
    return [
        r.config_name,
        f"{r.throughput:.0f}",
        f"{r.speedup:.2f}",
        _range(r.speedup_interval),
        _number(r.decoding_speedup),
        _number(r.predicted_speedup),
        DASH if r.acceptance_rate is None else f"{r.acceptance_rate:.0%}",
        f"{r.tokens_per_round:.2f}",
        DASH if r.peak_memory is None else f"{r.peak_memory / 2**20:.0f} MiB",
    ]


def _latency(r: BenchmarkResult) -> list[str]:
    sure = f"needs {r.latency_p99_needs}"
    if r.latency_p99_interval is not None:
        sure = "–".join(f"{1e3 * end:.0f}" for end in r.latency_p99_interval)
    times = (r.latency_mean, r.latency_p50, r.latency_p95, r.latency_p99)
    return [
        r.config_name,
        *(f"{1e3 * t:.0f}" for t in times),
        sure,
        f"{1e3 * r.time_to_first_token:.1f}",
        str(r.samples),
    ]


def _draft_rows(result: SuiteResult) -> list[list[str]]:
    return [
        [
            d.name,
            f"{d.parameters / 1e6:.2f} M" if d.parameters else "none",
            DASH if d.speed_ratio is None else f"{d.speed_ratio:.{0 if d.speed_ratio >= 100 else 1}f}×",
            DASH if d.acceptance_rate is None else f"{d.acceptance_rate:.0%}",
            str(d.best_k),
            f"{d.speedup:.2f}",
            _range(d.speedup_interval),
            _number(d.predicted_speedup),
            DASH if d.predicted_best_k is None else str(d.predicted_best_k),
        ]
        for d in result.drafts
    ]


def figures(result: SuiteResult) -> "dict[str, Figure]":
    """The suite's figures by name."""
    return {"speedups": pictures.speedups(result), "latencies": pictures.latencies(result)}


def html_report(result: SuiteResult) -> str:
    """The whole report, one HTML document that needs no other file and no network."""
    facts = result.facts
    settings = facts["settings"]
    what = [
        f"target: {facts['target']['parameters'] / 1e6:.2f} M parameters",
        f"{settings['max_new_tokens']} new tokens",
        f"temperature {settings['sampling']['temperature']:g}",
        f"{settings['prompts']} prompts of each length",
    ]
    drawn = [f"<figure>{pictures.embedded(f, pictures.alt_text(f))}</figure>" for f in figures(result).values()]
    tables = [
        f'<div class="wide">{html_table(title, columns.full, rows)}</div>' for title, columns, rows in grids(result)
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Speculative decoding: benchmark</title><style>{STYLE}</style></head><body>
<h1>Speculative decoding: benchmark</h1>
<p>{html.escape(headline(result))}</p>
<p class="note">{html.escape(" · ".join(what))}<br>{html.escape(machine_line(facts["machine"]))}</p>
<h2>At a glance</h2>{"".join(drawn)}
<h2>In figures</h2>{"".join(tables)}
<p class="note">{html.escape(NOTES)}</p>
<footer>Every timed request is a line of samples.jsonl beside this file, from which all figures follow.</footer>
</body></html>
"""


def write_report(result: SuiteResult, folder: Path) -> list[Path]:
    """Write report.html, results.json and the figures into `folder`. Returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "report.html", folder / "results.json"
    page.write_text(html_report(result), encoding="utf-8")
    data.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    written = [page, data]
    for name, figure in figures(result).items():
        written.append(folder / f"{name}.svg")
        figure.savefig(written[-1], metadata={"Date": None})
    return written


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _range(interval: "Interval | None") -> str:
    return DASH if interval is None else f"{interval[0]:.2f}–{interval[1]:.2f}"
