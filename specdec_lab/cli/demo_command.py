"""`specdec demo`: show how a completion is drafted and verified, then measure the speedup on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdec_lab.cli.common import (
    DeviceOption,
    DrafterOption,
    DraftOption,
    DtypeOption,
    JsonOption,
    TargetOption,
    check_can_draft,
    check_verification_option,
    headline,
    load,
    progress_bar,
    result_cells,
    result_facts,
    result_table,
    terminal_svg,
)
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_lab.measurement.demo import Mode, Way
    from specdec_ref.loading import Pair


def demo(
    target: TargetOption = None,
    draft: DraftOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    drafter: DrafterOption = None,
    verification: Annotated[
        str | None, typer.Option(help="How drafted tokens are verified: token or block (default: compare both).")
    ] = None,
    as_json: JsonOption = False,
    svg: Annotated[Path | None, typer.Option(help="Also write what the terminal shows to this SVG file.")] = None,
) -> None:
    """Watch one completion being drafted and verified, then measure the speedup on this machine. About a minute.

    Without options it compares all shipped drafts and heads, and names the fastest at temperature 1.
    """
    if svg is not None and not svg.resolve().parent.is_dir():
        raise SpecdecError(f"--svg {svg}: there is no folder {svg.parent}")
    if verification is not None:
        check_verification_option(verification)
    console = Console(quiet=as_json, record=svg is not None, highlight=False, width=100 if svg else None)
    pair = load(target, draft, device, dtype, drafter)
    check_can_draft(pair)
    from specdec_lab.measurement import demo as measuring
    from specdec_ref.loading import held_out_prompts, shipped

    if drafter is None and verification is None and pair.draft is not None:
        ways = measuring.usual_ways(pair, with_head=target is None and draft is None and "head" in shipped())
    else:
        name = drafter or ("head" if pair.draft is None else "draft model")
        ways = [measuring.Way(name, pair, verification or "token")]
    texts = held_out_prompts()
    console.print(headline(pair) + (" · no network used" if target is None else ""), "\n")
    if not as_json:
        _stream(console, ways[0], texts.get("textwrap._wrap_chunks", min(texts.values())))
    prompts = [pair.tokenizer(text)["input_ids"][: pair.context // 2] for text in list(texts.values())[:6]]
    with progress_bar(console, measuring.steps(ways, len(prompts), 1)) as step:
        modes = measuring.measure(ways, prompts, on_step=step)
    if as_json:
        print(json.dumps(_demo_facts(pair, modes), indent=1))
        return
    console.print(_demo_table(modes))
    same, of = modes[0].identical
    console.print(
        "per round: tokens emitted for one step of the target · formula: predicted speedup\n"
        "repeats: share of the text that occurred before\n"
        f"same output as the target: greedy identical, {same} of {of} texts"
    )
    console.print(_costs_line(modes[1]))
    if len(modes[1].ways) > 1:
        best = modes[1].fastest
        console.print(
            f"fastest at temperature 1: {best.way.label}, k = {best.k}, {best.result.speedup:.2f} times", style="bold"
        )
    console.print("next: make lab opens the course, specdec bench compares every k", style="bold")
    if svg is not None:
        svg.write_text(terminal_svg(console, "make demo"), encoding="utf-8")


def _costs_line(mode: "Mode") -> str:
    """A line with the cost of each drafter in target steps, and v."""
    from specdec_lab.measurement.methods import drafts_one_at_a_time

    parts = {}
    for timed in mode.ways:
        if drafts_one_at_a_time(timed.way.pair):
            parts[timed.way.name] = f"{timed.way.name}: c = {timed.costs.c:.3f} (draft step / target step)"
    first = mode.ways[0]
    n = first.k + 1
    return " · ".join([*parts.values(), f"v({n}) = {first.costs.v(n):.2f} (scoring {n} tokens / one)"])


def _stream(console: Console, way: "Way", prompt: str) -> None:
    """Print one completion as it is generated. Accepted, rejected and bonus tokens differ in color and in mark."""
    from specdec_lab.teaching.strip import legend_text, round_text
    from specdec_ref.api import stream_speculative

    pair = way.pair
    ids = pair.tokenizer(prompt)["input_ids"][-pair.context // 2 :]
    tail = str(pair.tokenizer.decode(ids)).splitlines()[-8:]
    console.print(Text("\n".join(tail), style="dim"))
    length = min(80, pair.context // 2)
    for chunk in stream_speculative(pair, ids, max_new_tokens=length, seed=7, verification=way.verification):
        console.print(round_text(chunk.round, pair.tokenizer), end="", soft_wrap=True)
    console.print("\n", legend_text(), "\n", sep="\n")


def _demo_table(modes: "list[Mode]") -> Table:
    table = result_table("", "", "", "tok/s", "speedup", "accepted", "per round", "formula", "repeats")
    table.padding = (0, 1, 0, 0)  # fits a terminal of 80 columns
    for mode in modes:
        plain = result_facts(mode.baseline)
        table.add_row(mode.name, "no drafts", "", *result_cells(plain), "", f"{plain['repeated_share']:.0%}")
        for timed in mode.ways:
            facts = result_facts(timed.result)
            cells = [*result_cells(facts), f"{timed.predicted:.2f}", f"{facts['repeated_share']:.0%}"]
            table.add_row("", timed.way.label, f"k = {timed.k}", *cells)
    return table


def _demo_facts(pair: "Pair", modes: "list[Mode]") -> dict[str, Any]:
    return {
        "headline": headline(pair),
        "modes": [
            {
                "name": mode.name,
                "baseline": result_facts(mode.baseline),
                "ways": [
                    {
                        "name": timed.way.label,
                        "k": timed.k,
                        **result_facts(timed.result),
                        "formula": timed.predicted,
                        "c": timed.costs.c,
                        "v": timed.costs.v(timed.k + 1),
                    }
                    for timed in mode.ways
                ],
                "fastest": mode.fastest.way.label,
                "identical_texts": mode.identical[0] if mode.sampling.greedy else None,
                "texts": mode.identical[1],
            }
            for mode in modes
        ],
    }
