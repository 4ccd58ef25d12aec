"""The command line: a thin layer over the wings. Heavy imports wait inside the commands, so that `--help` is
instant."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdec_ref import plotting
from specdec_ref.cli_bench import bench
from specdec_ref.cli_doctor import doctor
from specdec_ref.cli_equivalence import equivalence
from specdec_ref.cli_grade import grade, progress
from specdec_ref.cli_vllm import vllm_config
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_ref.control import Round
    from specdec_ref.measurement.demo import Mode
    from specdec_ref.models import Pair
    from specdec_ref.training.fitting import Tick

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Speculative decoding: see it, measure it, train the pair that shows it.",
)

TargetOption = Annotated[
    str | None, typer.Option(help="Target model: a folder or hub name (default: the one that ships).")
]
DraftOption = Annotated[
    str | None, typer.Option(help="Draft model: a folder, hub name, or the name of one that ships.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, … (default: the GPU where there is one).")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16, … (default: float32 on CPU, else bfloat16).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


def main() -> None:
    """Entry point of `specdec`. Exit status: 0; 1 a check failed; 2 bad usage; 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show ✓ shows ?
    try:
        app()
    except SpecdecError as error:
        print(f"specdec: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("specdec: interrupted", file=sys.stderr)
        sys.exit(130)


@app.command()
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
    pair = _pair(target, draft, device, dtype)
    if pair.draft is None:
        raise SpecdecError("draft: the demo needs a draft model; name one with --draft")
    from specdec_ref.measurement import demo as measuring
    from specdec_ref.models import held_out_prompts

    texts = held_out_prompts()
    console.print(_headline(pair) + (" · no network used" if target is None else ""), "\n")
    if not as_json:
        _stream(console, pair, texts.get("textwrap._wrap_chunks", min(texts.values())))
    prompts = [pair.tokenizer(text)["input_ids"][: pair.context // 2] for text in list(texts.values())[:6]]
    with _progress(console, measuring.steps(len(prompts), 1)) as step:
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


app.command()(bench)
app.command()(doctor)
app.command()(equivalence)
app.command()(grade)
app.command()(progress)
app.command("vllm-config")(vllm_config)


@app.command()
def train(
    output: Annotated[Path, typer.Argument(help="Folder for the finished pair.")],
    tiny: Annotated[bool, typer.Option("--tiny", help="The same in miniature, in under a minute.")] = False,
    device: DeviceOption = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Use torch.compile (a third faster; needs a C++ compiler).")
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Only measure the pair in OUTPUT and write its card again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train target and drafts on the Python standard library's own source. Ctrl-C and the same command: it goes on.

    Checkpoints are kept in OUTPUT.work until you delete them.
    """
    import torch

    from specdec_ref.measurement.costs import measure_costs
    from specdec_ref.models import usable_device
    from specdec_ref.training.card import write_card
    from specdec_ref.training.recipe import RECIPES
    from specdec_ref.training.run import Training

    _quiet_libraries()
    console = Console(quiet=as_json, highlight=False)
    recipe = RECIPES["tiny" if tiny else "full"]
    where = usable_device(device)
    if output.exists() and not output.is_dir():
        raise SpecdecError(f"{output}: is a file; takes a folder for the finished pair")
    work = output.with_name(output.name + ".work")
    if card and not (output / "target" / "config.json").is_file():
        raise SpecdecError(f"{output}: holds no trained pair to measure; train one first")
    if not card:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecdecError(f"{work}: cannot be made: {error.strerror}; takes another OUTPUT") from error
        with _training_progress(console) as (on_stage, on_tick):
            Training(recipe, work, output, where, compiled, None, on_stage, on_tick).run()
    torch.set_grad_enabled(False)
    facts = write_card(
        output,
        where,
        lambda pair: measure_costs(pair, max_k=4, context=min(200, pair.context // 2), repeats=5 if tiny else 31).c,
        quick=tiny,
        on_stage=lambda what: console.print(f"measuring: {what}"),
    )
    print(json.dumps(facts, indent=1)) if as_json else console.print(
        f"ready: {output}, described in {output / 'README.md'}"
    )
    if not as_json:
        console.print(f"try it: specdec demo --target {output / 'target'} --draft {output / 'draft-medium'}")


def _pair(target: str | None, draft: str | None, device: str | None, dtype: str | None) -> "Pair":
    _quiet_libraries()
    from specdec_ref.models import load_pair

    return load_pair(target, draft, device=device, dtype=dtype)


def _quiet_libraries() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _headline(pair: "Pair") -> str:
    import torch

    def size(model: Any) -> str:
        return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"

    where = (
        f"cpu, {torch.get_num_threads()} threads"
        if pair.device.type == "cpu"
        else torch.cuda.get_device_name(pair.device)
    )
    draft = f" · draft {size(pair.draft)}" if pair.draft is not None else ""
    return f"target {size(pair.target)}{draft} · {where}, {str(pair.target.dtype).removeprefix('torch.')}"


def _stream(console: Console, pair: "Pair", prompt: str) -> None:
    """One completion as it is made: accepted, rejected and bonus tokens told apart by colour and by mark."""
    from specdec_ref.decoding import stream_speculative

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


def round_text(played: "Round", tokenizer: Any) -> Text:
    """One round for the terminal: accepted tokens underlined, the rejected one struck out with ✗, the bonus with ★."""

    def show(token: int) -> str:
        return str(tokenizer.decode([token]))

    text = Text()
    kept = min(played.accepted, len(played.emitted))
    for token in played.emitted[:kept]:
        body = show(token)
        text.append(body[: len(body) - len(body.lstrip())])
        text.append(body.lstrip(), style=f"underline {plotting.ACCEPTED}")
    if len(played.emitted) > kept:
        body = show(played.emitted[kept])
        if played.accepted < len(played.drafted):
            refused = show(played.drafted[played.accepted]).strip(" ").replace("\n", "⏎")
            text.append(plotting.REJECTED_MARK, style=plotting.REJECTED)
            text.append(refused or "␣", style=f"strike {plotting.REJECTED}")
            text.append(body)
        else:
            blank = len(body) - len(body.lstrip())
            text.append(body[:blank])
            text.append(plotting.BONUS_MARK + body[blank:], style=f"bold {plotting.BONUS}")
    return text


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and column else "left", no_wrap=True)
    return table


def _facts(result: Any) -> dict[str, Any]:
    names = "tokens_per_second", "speedup", "acceptance", "tokens_per_round", "repeated_share"
    return {name: getattr(result, name) for name in names}


def _cells(facts: dict[str, Any]) -> tuple[str, str, str, str]:
    one = facts["acceptance"] is None
    return (
        f"{facts['tokens_per_second']:.0f}",
        f"{facts['speedup']:.2f}",
        "" if one else f"{facts['acceptance']:.0%}",
        "" if one else f"{facts['tokens_per_round']:.1f}",
    )


def _demo_table(modes: "list[Mode]") -> Table:
    table = _table("", "", "tokens/s", "speedup", "accepted", "per round", "formula", "repeats")
    for mode in modes:
        table.add_row(
            mode.name, "one by one", *_cells(_facts(mode.baseline)), "", f"{mode.baseline.repeated_share:.0%}"
        )
        more = _facts(mode.speculative)
        table.add_row("", f"k = {mode.k}", *_cells(more), f"{mode.predicted:.2f}", f"{more['repeated_share']:.0%}")
    return table


def _demo_facts(pair: "Pair", modes: "list[Mode]") -> dict[str, Any]:
    return {
        "headline": _headline(pair),
        "modes": [
            {
                "name": mode.name,
                "k": mode.k,
                "baseline": _facts(mode.baseline),
                "speculative": _facts(mode.speculative),
                "formula": mode.predicted,
                "c": mode.costs.c,
                "v": mode.costs.v(mode.k + 1),
                "identical_prompts": mode.identical[0] if mode.sampling.greedy else None,
                "prompts": mode.identical[1],
            }
            for mode in modes
        ],
    }


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Any]:
    """A progress bar of `total` steps that goes away when done. Yields the function that makes one step."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:24}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)


@contextmanager
def _training_progress(console: Console) -> Iterator[Any]:
    """Progress of a training: what is being done, loss, pace, time left. Lines now and then where it is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}")
    with Progress(*columns, console=console, disable=console.quiet) as bar:
        task = bar.add_task("", total=None, facts="")
        now = {"stage": ""}

        def on_stage(stage: str) -> None:
            now["stage"] = stage
            bar.update(task, description=stage, completed=0, total=None, facts="")
            if not console.is_terminal:
                console.print(stage)

        def on_tick(tick: "Tick") -> None:
            losses = ", ".join(f"{name.removeprefix('draft-')} {loss:.3f}" for name, loss in tick.loss.items())
            facts = f"loss {losses} · {tick.tokens_per_second:,.0f} tokens/s · {_span(tick.seconds_left)} left"
            bar.update(task, completed=tick.step, total=tick.steps, facts=facts)
            if not console.is_terminal and (tick.step % 100 == 0 or tick.step == tick.steps):
                console.print(f"{now['stage']} {tick.step}/{tick.steps} · {facts}", soft_wrap=True)

        yield on_stage, on_tick


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
