"""`specdec train`: make the pair that ships, or a miniature of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from specdec_lab.cli.common import DeviceOption, JsonOption, quiet_libraries
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_lab.training.fitting import Tick


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

    from specdec_lab.measurement.costs import measure_costs
    from specdec_lab.training.card import write_card
    from specdec_lab.training.recipe import RECIPES
    from specdec_lab.training.run import Training
    from specdec_ref.loading import usable_device

    quiet_libraries()
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
