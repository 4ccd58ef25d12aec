"""The report of the suite: one HTML file with its styles and figures, and without scripts."""

import html
import json
from pathlib import Path

from specdec_lab.measurement.benchmark_figures import alt_text, embedded, speedups
from specdec_lab.measurement.benchmark_workload import machine_line
from specdec_lab.measurement.suite_result import DRAFT_NOTES, NOTES, SuiteResult
from specdec_lab.measurement.tables_shown import html_table

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


def html_report(result: SuiteResult) -> str:
    """The report as one HTML document, which needs no other file and no network."""
    facts = result.facts
    settings = facts["settings"]
    what = [
        f"target: {facts['target']['parameters'] / 1e6:.2f} M parameters",
        f"{settings['max_new_tokens']} new tokens",
        f"temperature {settings['sampling']['temperature']:g}",
        f"{settings['prompts']} prompts of each length",
    ]
    figure = speedups(result)
    tables = [f'<div class="wide">{html_table(*grid)}</div>' for grid in result.grids()]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Speculative decoding: benchmark</title><style>{STYLE}</style></head><body>
<h1>Speculative decoding: benchmark</h1>
<p>{html.escape(result.headline)}</p>
<p class="note">{html.escape(" · ".join(what))}<br>{html.escape(machine_line(facts["machine"]))}</p>
<h2>At a glance</h2><figure>{embedded(figure, alt_text(figure))}</figure>
<h2>In numbers</h2>{"".join(tables)}
<p class="note">{html.escape(NOTES)}</p>
<p class="note">{html.escape(DRAFT_NOTES)}</p>
<footer>Computed from samples.jsonl next to this file, which has one line per timed request.</footer>
</body></html>
"""


def write_report(result: SuiteResult, folder: Path) -> list[Path]:
    """Write report.html, results.json and speedups.svg into `folder`. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / name for name in ("report.html", "results.json", "speedups.svg")]
    written[0].write_text(html_report(result), encoding="utf-8")
    written[1].write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    speedups(result).savefig(written[2], metadata={"Date": None})
    return written
