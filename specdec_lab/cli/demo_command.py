"""`specdec demo`: watch a completion being drafted and verified, then the speedup on this machine."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdec_lab import plotting
from specdec_lab.cli.common import (
    DeviceOption,
    DraftOption,
    DtypeOption,
    JsonOption,
    TargetOption,
    headline,
    load,
    progress_bar,
    result_cells,
    result_facts,
    result_table,
)
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_lab.measurement.demo import Mode
    from specdec_ref.loading import Pair


def demo(
    target: TargetOption = None,
    draft: DraftOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    svg: Annotated[Path | None, typer.Option(help="Also write what the terminal shows to this SVG file.")] = None,
) -> None:
    """Watch one completion being drafted and verified, then measure the speedup on this machine. Under a minute."""
    if svg is not None and not svg.resolve().parent.is_dir():
        raise SpecdecError(f"--svg {svg}: there is no folder {svg.parent}")
    console = Console(quiet=as_json, record=svg is not None, highlight=False, width=100 if svg else None)
    pair = load(target, draft, device, dtype)
    if pair.draft is None:
        raise SpecdecError("draft: the demo needs a draft model; name one with --draft")
    from specdec_lab.measurement import demo as measuring
    from specdec_ref.loading import held_out_prompts

    texts = held_out_prompts()
    console.print(headline(pair) + (" · no network used" if target is None else ""), "\n")
    if not as_json:
        _stream(console, pair, texts.get("textwrap._wrap_chunks", min(texts.values())))
    prompts = [pair.tokenizer(text)["input_ids"][: pair.context // 2] for text in list(texts.values())[:6]]
    with progress_bar(console, measuring.steps(len(prompts), 1)) as step:
        modes = measuring.measure(pair, prompts, on_step=step)
    if as_json:
        print(json.dumps(_demo_facts(pair, modes), indent=1))
        return
    console.print(_demo_table(modes))
    same, of = modes[0].identical
    console.print(
        "per round: tokens emitted for one step of the target · formula: predicted speedup\n"
        "repeats: share of the text that occurred before\n"
        f"same output as the target: greedy identical, {same} of {of} prompts\n"
        f"c = {modes[1].costs.c:.3f} (draft step / target step), "
        f"v({modes[1].k + 1}) = {modes[1].costs.v(modes[1].k + 1):.2f} (scoring {modes[1].k + 1} tokens / one)"
    )
    console.print("next: make lab opens the course, specdec bench compares every k", style="bold")
    if svg is not None:
        picture = console.export_svg(title="make demo")
        svg.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")  # no web fonts


def _stream(console: Console, pair: "Pair", prompt: str) -> None:
    """One completion as it is made: accepted, rejected and bonus tokens told apart by color and by mark."""
    from specdec_lab.teaching.strip import round_text
    from specdec_ref.api import stream_speculative

    ids = pair.tokenizer(prompt)["input_ids"][-pair.context // 2 :]
    tail = str(pair.tokenizer.decode(ids)).splitlines()[-8:]
    console.print(Text("\n".join(tail), style="dim"))
    for chunk in stream_speculative(pair, ids, k=4, max_new_tokens=min(80, pair.context // 2), seed=7):
        console.print(round_text(chunk.round, pair.tokenizer), end="", soft_wrap=True)
    legend = Text("\n\n")
    legend.append("accepted", style=f"underline {plotting.ACCEPTED}").append("   ")
    legend.append(f"{plotting.REJECTED_MARK}", style=plotting.REJECTED)
    legend.append("rejected", style=f"strike {plotting.REJECTED}").append(" → the target's word instead   ")
    legend.append(f"{plotting.BONUS_MARK}bonus", style=f"bold {plotting.BONUS}").append(
        " (all accepted: one more, free)\n"
    )
    console.print(legend)


def _demo_table(modes: "list[Mode]") -> Table:
    table = result_table("", "", "tokens/s", "speedup", "accepted", "per round", "formula", "repeats")
    for mode in modes:
        plain, drafted = result_facts(mode.baseline), result_facts(mode.speculative)
        table.add_row(mode.name, "no drafts", *result_cells(plain), "", f"{plain['repeated_share']:.0%}")
        repeats = f"{drafted['repeated_share']:.0%}"
        table.add_row("", f"k = {mode.k}", *result_cells(drafted), f"{mode.predicted:.2f}", repeats)
    return table


def _demo_facts(pair: "Pair", modes: "list[Mode]") -> dict[str, Any]:
    return {
        "headline": headline(pair),
        "modes": [
            {
                "name": mode.name,
                "k": mode.k,
                "baseline": result_facts(mode.baseline),
                "speculative": result_facts(mode.speculative),
                "formula": mode.predicted,
                "c": mode.costs.c,
                "v": mode.costs.v(mode.k + 1),
                "identical_prompts": mode.identical[0] if mode.sampling.greedy else None,
                "prompts": mode.identical[1],
            }
            for mode in modes
        ],
    }
