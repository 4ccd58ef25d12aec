"""`specdec train`: train the pair that ships, a miniature of it, or a head."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from specdec_lab.cli.common import DeviceOption, JsonOption, TargetOption, load, quiet_libraries
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_lab.training.fitting import Tick


def train(
    output: Annotated[Path, typer.Argument(help="Folder for the finished pair.")],
    tiny: Annotated[bool, typer.Option("--tiny", help="Train a miniature pair, in under a minute.")] = False,
    device: DeviceOption = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Use torch.compile (a third faster; needs a C++ compiler).")
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Only measure the pair in OUTPUT and write its card again.")
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(help="Train a head on the features of --target instead: 'feature' or 'parallel'."),
    ] = None,
    target: TargetOption = None,
    text: Annotated[
        Path | None,
        typer.Option(help="With --head: a folder of text files to train on, instead of the standard library."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train target and drafts on the source of the Python standard library, or a head for a target.

    After Ctrl-C the same command continues. Checkpoints are kept in OUTPUT.work until you delete them.
    """
    _check_head_options(head, target, text, card)
    if head is not None:
        _train_head(head, target, text, output, tiny, device, compiled, as_json)
        return
    import torch

    from specdec_lab.training.card import write_card
    from specdec_lab.training.recipe import RECIPES
    from specdec_lab.training.run import Training
    from specdec_ref.loading import usable_device

    quiet_libraries()
    console = Console(quiet=as_json, highlight=False)
    recipe = RECIPES["tiny" if tiny else "full"]
    where = usable_device(device)
    work = _work_folder(output, make=not card)
    if card and not (output / "target" / "config.json").is_file():
        raise SpecdecError(f"{output}: holds no trained pair to measure; train one first")
    if not card:
        with _training_progress(console) as (on_stage, on_tick):
            Training(recipe, work, output, where, compiled, None, on_stage, on_tick).run()
    torch.set_grad_enabled(False)
    facts = write_card(output, where, quick=tiny, on_stage=lambda what: console.print(f"measuring: {what}"))
    print(json.dumps(facts, indent=1)) if as_json else console.print(
        f"ready: {output}, described in {output / 'README.md'}"
    )
    if not as_json:
        console.print(f"try it: specdec demo --target {output / 'target'} --draft {output / 'draft-medium'}")


def _check_head_options(head: str | None, target: str | None, text: Path | None, card: bool) -> None:
    if head not in (None, "feature", "parallel"):
        raise SpecdecError(f"--head {head}: takes 'feature' or 'parallel'")
    if head is None and target is not None:
        raise SpecdecError(f"--target {target}: is what a head is trained on; takes --head as well")
    if head is None and text is not None:
        raise SpecdecError(f"--text {text}: is what a head is trained on; takes --head as well")
    if head is not None and card:
        raise SpecdecError(f"--head {head}: has no card; leave out --card")


def _work_folder(output: Path, make: bool = True) -> Path:
    """The folder of the checkpoints. Raises SpecdecError if OUTPUT or that folder cannot be created."""
    if output.exists() and not output.is_dir():
        raise SpecdecError(f"{output}: is a file; takes a folder for the finished pair")
    work = output.with_name(output.name + ".work")
    try:
        if make:
            work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecdecError(f"{work}: cannot be made: {error.strerror}; takes another OUTPUT") from error
    return work


def _train_head(
    kind: str,
    target: str | None,
    text: Path | None,
    output: Path,
    tiny: bool,
    device: str | None,
    compiled: bool,
    as_json: bool,
) -> None:
    """Train a head on a target's features, and measure its cost."""
    import torch
    from tokenizers import Tokenizer

    from specdec_lab.training.heads import HEAD_RECIPES, HeadTraining, head_costs
    from specdec_ref.beyond.heads import load_head

    console = Console(quiet=as_json, highlight=False)
    work = _work_folder(output)
    pair = load(target or "target", None, device, "float32")
    backend: Tokenizer = pair.tokenizer.backend_tokenizer
    recipe = HEAD_RECIPES["tiny" if tiny else kind]

    def on_evaluation(step: int, acceptance: list[float]) -> None:
        rates = ", ".join(f"{rate:.3f}" for rate in acceptance)
        console.print(f"step {step}: Σ min(p, q) of draft steps on held-out text {rates}", soft_wrap=True)

    with _training_progress(console) as (on_stage, on_tick):
        training = HeadTraining(
            kind,
            pair.target.requires_grad_(False),
            backend,
            recipe,
            work,
            output,
            compiled,
            None,
            on_stage,
            on_tick,
            on_evaluation,
            text,
        )
        facts = training.run()
    torch.set_grad_enabled(False)
    context = min(200, pair.context // 2)
    costs = head_costs(load_head(pair.target, output), context=context, repeats=5 if tiny else 31)
    facts["c"] = costs.c
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    console.print(
        f"ready: {output}, Σ min(p, q) {facts['acceptance'][0]:.3f} at the first draft step, c = {costs.c:.3f}"
    )


@contextmanager
def _training_progress(console: Console) -> Iterator[Any]:
    """Show the progress of a training: stage, loss, pace, time left. Without a terminal, print a line now and then."""
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
