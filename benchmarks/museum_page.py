"""Write the museum's page, with its picture.

    python benchmarks/museum_page.py docs

writes museum.md and museum.svg into that folder; `make museum` does so. From the folder next to it, benchmarks/results,
it reads what was recorded on the pair that ships: museum.json by `benchmarks/museum.py` and
equivalence_*.json by `specdec equivalence --json` for some engines.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec_lab.equivalence.museum import CAUGHT, INTENDED, MISSED, RIGHT, Matrix, matrix
from specdec_lab.equivalence.mutants import Mutant
from specdec_lab.equivalence.mutants_randomness import RANDOMNESS

INTRODUCTION = """# The museum of wrong versions

<!-- Written by `python benchmarks/museum_page.py docs`. Do not edit. -->

Speculative decoding is easy to get wrong without noticing. A wrong version may write fluent text whose probabilities
are not the target's. Or it may write the right text without the speedup. Each exhibit is one such mistake, made in one
place of this package's own code. To see one at work:

```python
from specdec_lab.equivalence import mutant

with mutant("residual-is-target").installed():
    ...  # everything in this block runs the wrong version
```
"""

TESTS = "Every test runs on every wrong version:"

LEGEND = f"""{CAUGHT} caught, {INTENDED} caught by the test that is meant for it, {MISSED} not caught. The two columns
with a star are tests of public projects, rewritten from their descriptions. They pass p, q and drafted tokens to the
verification rule alone.

The exact proof refutes everything that changes the distribution, with one kind of exception: mistakes inside
`SeededRandomness` (see below). A mistake that only loses speed passes the proof, because the text is right. How many
wrong versions each test catches:"""

RESULTS = Path("benchmarks", "results")

PICTURE = """![Every wrong version against every test: caught, caught by the test meant for it, or not](museum.svg)"""

DEPENDENCE = """## Random numbers that are not independent

The exact proof enumerates every outcome. To do so, it replaces the sampler's random numbers by independent ones. So it
cannot detect that the real random numbers depend on each other. [`noise-shared`](#noise-shared) and
[`u-shared-in-row`](#u-shared-in-row) pass the proof for this reason, although their output distribution is wrong.

Two tests catch both of them, because they use the real random numbers and compare joint distributions of several
tokens. `joint`, on small tables, is part of the matrix above. The empirical test does the same for any sampler. It
needs enough samples: with a shared u, the first token is right, and only later tokens are not. `u-shared-in-round` is
the same mistake inside the verification rule, where the proof detects it."""

ENGINES = """## Other engines under the same test

`specdec equivalence --engine …` tests any sampler against the target's own probabilities. On the pair that ships:"""

ON_THE_PAIR = """## On the pair that ships

`benchmarks/museum.py` samples from the trained pair while a wrong version is in effect, with two settings: temperature
1; and temperature 0.7 with top-k 40 and a draft that stops when it is unsure. TV is the total variation between the
distribution of the first four tokens and the target's, estimated without bias. The table shows the setting with the
larger TV. An unbiased estimate of a TV near 0 can be negative, and is then shown as 0. The interval contains the true
TV with a probability of 95 %. It is wide because it assumes nothing about the distribution.

Where the TV is 0.03 or more, the empirical test has to refute the wrong version in every run. A run has as many samples
as detect such a difference 99 times in 100. Both settings decode chains with token verification, so the wrong versions
of blocks, trees and heads are not in this table."""


def page(
    result: Matrix,
    record: dict[str, Any] | None = None,
    engines: Sequence[dict[str, Any]] = (),
    calibration: dict[str, Any] | None = None,
) -> str:
    """docs/museum.md: the matrix, what was recorded, and every wrong version as a difference from the correct code.

    Args:
        result: the matrix.
        record: what `benchmarks/museum.py` wrote.
        engines: what `specdec equivalence --json` printed for some.
        calibration: what `benchmarks/equivalence_calibration.py` wrote.
    """
    tests = [f"- **{c.short}** (`{c.name}`): {c.what}" for c in result.checks]
    counts = [f"- {sentence}" for sentence in result.summary()]
    introduction = f"{INTRODUCTION}\n{result.origins()}.\n\n{TESTS}"
    parts = [introduction, "\n".join(tests), PICTURE, _table(result), LEGEND, "\n".join(counts), DEPENDENCE]
    parts += [_dependence(record)] if record else []
    parts += _on_the_pair(record) if record else []
    parts += [_calibrated(calibration)] if calibration else []
    parts += [ENGINES, "\n".join(map(_of_engine, engines))] if engines else []
    for effect, title in (("distribution", "They change the distribution"), ("speed", "They only lose speed")):
        parts.append(f"## {title}")
        parts += [_exhibit(m, result) for m in result.mutants if m.effect == effect]
    return "\n\n".join(parts) + "\n"


def _table(result: Matrix) -> str:
    """Every wrong version against every test."""
    head = ["wrong version", *(check.heading for check in result.checks)]
    ruler = ["---", *(":-:" for _ in result.checks)]
    rows = [[f"[{row[0]}](#{row[0]})" if row[0] != RIGHT else RIGHT, *row[1:]] for row in result.rows()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])


def _dependence(record: dict[str, Any]) -> str:
    """How often the empirical test refuted dependent random numbers, one line for each wrong version."""
    lines = ["On the pair that ships (see the next section), the empirical test refuted", ""]
    for name in ("u-shared-in-round", *(m.name for m in RANDOMNESS)):
        entry = record["mutants"].get(name, {})
        if "refuted" in entry:
            runs = f"{entry['refuted']} of {len(entry['p_values'])} runs of {entry['samples']:,} samples"
            lines.append(f"- `{name}` in {runs}, at {entry['trial']}.")
    return "\n".join(lines)


def _on_the_pair(record: dict[str, Any]) -> list[str]:
    """The table of total variations, and how often the correct code was refuted."""
    rows = ["| wrong version | TV | 95 % interval | larger at | samples of a run | refuted |"]
    rows.append("| --- | --: | --: | --- | --: | --: |")
    for name, entry in sorted(record["mutants"].items(), key=lambda item: -item[1]["tv"]):
        tried = ["", ""]
        if "refuted" in entry:
            tried = [f"{entry['samples']:,}", f"{entry['refuted']} of {len(entry['p_values'])}"]
        where = entry["trial"].partition(",")[0]
        low, high = entry["trials"][entry["trial"]]["tv_interval"]
        tv = f"{max(0, entry['tv']):.3f} | {low:.3f} to {high:.3f}"
        rows.append(f"| [{name}](#{name}) | {tv} | {where} | {' | '.join(tried)} |")
    lines = []
    for name, facts in record["right_code"].items():
        runs, each = len(facts["p_values"]), record["settings"]["right_samples"]
        alarms = f"{facts['false_alarms']} refuted, at a stated rate of {facts['false_alarm_stated']:g}"
        p = facts["kolmogorov_smirnov"]["p_value"]
        ks = f"A Kolmogorov-Smirnov test of uniform p-values gives p = {p:.2g}"
        lines.append(f"- The correct code, {name}: {runs} runs of {each:,} samples, {alarms}. {ks}.")
    return [ON_THE_PAIR, "\n".join(rows), "\n".join(lines)]


def _calibrated(facts: dict[str, Any]) -> str:
    """Whether the empirical test's stated rates are true."""

    def share(rate: dict[str, Any]) -> str:
        return f"{rate['share']:.2%} ({rate['low']:.2%} to {rate['high']:.2%})"

    alarms = facts["false alarms, by stated rate"]
    refuted = [f"- {share(measured)} where {float(rate):.1%} is stated" for rate, measured in alarms.items()]
    lines = [
        f"**Are the stated rates of the empirical test true?** {alarms['0.05']['simulations']:,} tests were simulated, "
        f"each of {facts['samples']:,} samples",
        f"of the pair's {facts['outcomes']:,} outcomes over {facts['prompts']} prompts "
        "(`python benchmarks/equivalence_calibration.py`). A correct sampler was refuted in",
        "",
        *refuted,
        "",
        "of them (with 95 % intervals). The test states that it detects a total variation of "
        f"{facts['detectable_tv']:.3f} in {facts['stated_power']:.0%} of tests.",
        f"It did in {share(facts['found']['detectable TV, worst direction'])}, with the difference spread in the way "
        "that is hardest to detect.",
    ]
    return "\n".join(lines)


def _of_engine(facts: dict[str, Any]) -> str:
    """One line: the result and what it rests on."""
    result = "consistent with the target" if facts["consistent"] else "**not the target**"
    low, high = facts["tv_interval"]
    given = {name.replace("_", "-"): value for name, value in facts["sampling"].items() if value is not None}
    how = ", ".join(f"{name} {value:g}" for name, value in given.items())
    return (
        f"- {facts['sampler']}, {how}: {result}, p = {facts['p_value']:.2g} over {facts['samples']:,} samples of "
        f"{facts['length']} tokens. TV within {low:.3f} and {high:.3f}; {facts['detectable_tv']:.3f} or more is "
        "detected 99 times in 100."
    )


REFERENCE = re.compile(r"([\w.-]{2,}/[\w.-]*\w{2})( #(\d+))?|#(\d+)")
"""A GitHub repository with or without the number of an issue or pull request, or a number alone."""


def linked(seen: str) -> str:
    """The same text with links to repositories, issues and pull requests.

    A number without a repository belongs to the one before it.
    """
    repository = ""

    def link(match: re.Match[str]) -> str:
        nonlocal repository
        repository = match[1] or repository
        number = match[3] or match[4]
        return f"[{match[0]}](https://github.com/{repository}{f'/issues/{number}' if number else ''})"

    return REFERENCE.sub(link, seen)


def _exhibit(m: Mutant, result: Matrix) -> str:
    evidence = result.outcomes[m.name, m.caught_by].evidence
    origin = linked(f"By{m.seen.removeprefix('by')}" if m.by_reasoning else f"Seen: {m.seen}")
    return f"""<a id="{m.name}"></a>

### {m.title}

`{m.name}`, in `{m.where}`. {m.what}

- {origin}.
- Consequence: {m.output}
- Caught by `{m.caught_by}`: {evidence.removesuffix(".")}.

```diff
{m.difference}
```"""


Recorded = tuple[dict[str, Any] | None, list[dict[str, Any]], dict[str, Any] | None]


def recorded(folder: Path) -> Recorded:
    """What `page` takes after the matrix, from the results next to `folder`."""
    results = folder.resolve().parent / RESULTS

    def read(name: str) -> Any:
        file = results / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    engines = [read(file.name) for file in sorted(results.glob("equivalence_*.json"))]
    of_engines = [facts for facts in engines if "sampler" in facts]
    return read("museum.json"), of_engines, read("equivalence_calibration.json")


def _main() -> None:
    from rich.console import Console
    from rich.progress import Progress

    from specdec_lab.equivalence.equivalence_figures import museum_figure

    folder = Path(sys.argv[1])
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("wrong versions × tests")
        result = matrix(on_cell=lambda done, of: progress.update(bar, completed=done, total=of))
    (folder / "museum.md").write_text(page(result, *recorded(folder)), encoding="utf-8")
    museum_figure(result).savefig(folder / "museum.svg", metadata={"Date": None})
    sys.exit("\n".join(result.failures()) or 0)


if __name__ == "__main__":
    _main()
