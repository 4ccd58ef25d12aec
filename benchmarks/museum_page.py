"""The page about the museum, with its picture.

    python benchmarks/museum_page.py docs

writes museum.md and museum.svg into that folder; `make museum` does so. It reads what `benchmarks/museum.py` recorded
on the pair that ships from the folder next to it, benchmarks/results/museum.json, and what
`specdec equivalence --json` said of engines from equivalence_*.json there.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec_lab.equivalence.museum import CAUGHT, INTENDED, MISSED, RIGHT, Matrix, matrix
from specdec_lab.equivalence.mutants import Mutant

INTRODUCTION = """# The museum of wrong versions

<!-- Written by `python benchmarks/museum_page.py docs`. Do not edit. -->

Speculative decoding is easy to get wrong in ways that nobody sees: the text reads well, and only its probabilities are
not the target's; or the text is right, and only the speed that was hoped for does not come. Here are mistakes that
public projects have made, and some that the algorithm invites, each as a change of the package's own code in one
place. To see one at work:

```python
from specdec_lab.equivalence import mutant

with mutant("residual-is-target").installed():
    ...  # everything in here runs the wrong version
```

Every wrong version is put to every test:"""

LEGEND = f"""{CAUGHT} caught, {INTENDED} caught by the test that is meant for it, {MISSED} not. The columns with a star
are two tests of public projects, written anew after their descriptions. They hand p, q and drafted tokens to the rule
alone.

Whatever changes the distribution is refuted by the exact proof, but for one: the proof plays chance itself, so a
mistake inside `SeededRandomness` is out of its sight and has a test of its own. Whatever only loses speed passes the
proof, as it must: the text is right. How many each test catches:"""


RESULTS = Path("benchmarks", "results")

PICTURE = """![Every wrong version against every test: caught, caught by the test meant for it, or not](museum.svg)"""

ENGINES = """## What the test says of engines

`specdec equivalence --engine …` puts any sampler to the same test, against the target's own probabilities. On the pair
that ships:"""

ON_THE_PAIR = """## On the pair that ships

`benchmarks/museum.py` draws from the trained pair while each wrong version of the first kind is in force, in two ways:
at temperature 1, and at temperature 0.7 with top-k 40 and a draft that stops when it is unsure. TV is the total
variation of the first four tokens from the target's, in the way that shows more. Where it is 0.03 or more, the
empirical test has to refute it in every run, with as many samples as find such a difference 99 times in 100. Both ways
decode with token verification, so the wrong versions of block verification are not among them."""


def page(
    result: Matrix,
    record: dict[str, Any] | None = None,
    engines: Sequence[dict[str, Any]] = (),
    calibration: dict[str, Any] | None = None,
) -> str:
    """docs/museum.md: the matrix, what was recorded, and every wrong version with its difference from the right code.

    record: what `benchmarks/museum.py` wrote. engines: what `specdec equivalence --json` said of some.
    calibration: what `benchmarks/equivalence_calibration.py` wrote.
    """
    tests = [f"- **{c.short}** (`{c.name}`): {c.what}" for c in result.checks]
    counts = [f"- {sentence}" for sentence in result.summary()]
    parts = [INTRODUCTION, "\n".join(tests), PICTURE, _table(result), LEGEND, "\n".join(counts)]
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


def _on_the_pair(record: dict[str, Any]) -> list[str]:
    """The table of total variations, and what the right code did."""
    rows = ["| wrong version | TV | most at | samples of a run | refuted |", "| --- | --: | --- | --: | --: |"]
    for name, entry in sorted(record["mutants"].items(), key=lambda item: -item[1]["tv"]):
        tried = ["", ""]
        if "refuted" in entry:
            tried = [f"{entry['samples']:,}", f"{entry['refuted']} of {len(entry['p_values'])}"]
        where = entry["trial"].partition(",")[0]
        rows.append(f"| [{name}](#{name}) | {entry['tv']:.3f} | {where} | {' | '.join(tried)} |")
    said = []
    for name, one in record["right_code"].items():
        runs, each = len(one["p_values"]), record["settings"]["right_samples"]
        alarms = f"{one['false_alarms']} called wrong, where 1 in {1 / one['false_alarm_stated']:,.0f} may be"
        p = one["kolmogorov_smirnov"]["p_value"]
        ks = f"Kolmogorov and Smirnov find the p-values uniform with p = {p:.2g}"
        said.append(f"- The right code, {name}: {runs} runs of {each:,} samples, {alarms}; {ks}.")
    return [ON_THE_PAIR, "\n".join(rows), "\n".join(said)]


def _calibrated(facts: dict[str, Any]) -> str:
    """Whether the empirical test keeps what it says."""

    def share(one: dict[str, Any]) -> str:
        return f"{one['share']:.2%} ({one['low']:.2%} to {one['high']:.2%})"

    alarms = facts["false alarms, by stated rate"]
    called_wrong = [f"- {share(one)} where {float(rate):.1%} is stated" for rate, one in alarms.items()]
    lines = [
        f"**Does the empirical test keep its word?** {alarms['0.05']['simulations']:,} tests were simulated, each of "
        f"{facts['samples']:,} samples",
        f"of the pair's outcomes, {facts['outcomes']:,} over {facts['prompts']} prompts "
        "(`python benchmarks/equivalence_calibration.py`). A right sampler was called wrong in",
        "",
        *called_wrong,
        "",
        f"of them (with 95 % intervals). A sampler with a total variation of {facts['detectable_tv']:.3f}, of which it "
        f"says that {facts['stated_power']:.0%} of tests",
        f"find it, was found in {share(facts['found']['detectable TV, worst direction'])}, where the difference is "
        "spread in the way that hides it best.",
    ]
    return "\n".join(lines)


def _of_engine(facts: dict[str, Any]) -> str:
    """One line: the verdict and what it rests on."""
    found = "consistent with the target" if facts["consistent"] else "**not the target**"
    low, high = facts["tv_interval"]
    given = {name.replace("_", "-"): value for name, value in facts["sampling"].items() if value is not None}
    how = ", ".join(f"{name} {value:g}" for name, value in given.items())
    return (
        f"- {facts['sampler']}, {how}: {found}, p = {facts['p_value']:.2g} over {facts['samples']:,} samples of "
        f"{facts['length']} tokens. TV within {low:.3f} and {high:.3f}; {facts['detectable_tv']:.3f} or more would be "
        "found 99 times in 100."
    )


def _exhibit(m: Mutant, result: Matrix) -> str:
    seen = result.outcomes[m.name, m.caught_by].evidence
    return f"""<a id="{m.name}"></a>

### {m.title}

`{m.name}`, in `{m.where}`. {m.what}

- Seen: {m.seen}.
- What comes of it: {m.output}
- Caught by `{m.caught_by}`: {seen.removesuffix(".")}.

```diff
{m.difference}
```"""


def recorded(folder: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]], dict[str, Any] | None]:
    """The arguments `record`, `engines` and `calibration` of `page`, from the results beside `folder`."""
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
