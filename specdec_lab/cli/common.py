"""Shared code of the commands: options, loading a pair, the headline, tables of results, a progress bar.

Slow imports are inside the functions, so that `--help` is instant.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_ref.loading import Pair

TargetOption = Annotated[
    str | None, typer.Option(help="Target model: a folder or hub name (default: the one that ships).")
]
DraftOption = Annotated[
    str | None, typer.Option(help="Draft model or head: a folder, hub name, or the name of one that ships.")
]
DrafterOption = Annotated[
    str | None,
    typer.Option(
        help="How to draft: draft, head, parallel-head, tree, head-tree, lookup or suffix (default: what --draft is)."
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, … (default: the GPU where there is one).")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16, … (default: float32 on CPU, else bfloat16).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


def check_verification_option(verification: str) -> None:
    """Raise SpecdecError unless --verification is the name of a rule. Call this before loading a pair."""
    if verification not in ("token", "block"):
        raise SpecdecError(f"--verification {verification}: takes token or block")


def load(
    target: str | None, draft: str | None, device: str | None, dtype: str | None, drafter: str | None = None
) -> "Pair":
    """The pair with its drafting method, with the libraries quiet. Raises SpecdecError."""
    quiet_libraries()
    from specdec_lab.measurement.methods import with_method
    from specdec_ref.loading import HEADS, load_pair

    pair = load_pair(target, head_or_draft(draft, drafter), device=device, dtype=dtype)
    return pair if drafter is None or drafter in HEADS else with_method(pair, drafter)


def head_or_draft(draft: str | None, drafter: str | None) -> str | None:
    """The draft to load for --draft and --drafter: a head if --drafter names one. Raises SpecdecError."""
    from specdec_lab.measurement.methods import METHODS
    from specdec_ref.loading import HEADS

    if drafter is not None and drafter not in METHODS:
        raise SpecdecError(f"--drafter {drafter}: takes one of {', '.join(METHODS)}")
    if drafter in HEADS and draft is not None:
        raise SpecdecError(f"--drafter {drafter}: is the head that ships; name another with --draft alone")
    return drafter if drafter in HEADS else draft


def check_can_draft(pair: "Pair") -> None:
    """Raise SpecdecError for a pair without a draft model or drafter."""
    from specdec_lab.measurement.methods import can_draft

    if not can_draft(pair):
        raise SpecdecError("draft: needs something that drafts; name a model with --draft, or --drafter lookup")


def quiet_libraries() -> None:
    """Switch off the warnings and progress bars of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def headline(pair: "Pair") -> str:
    """Sizes, device and number type in a line."""
    import torch

    def size(model: Any) -> str:
        return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"

    where = (
        f"cpu, {torch.get_num_threads()} threads"
        if pair.device.type == "cpu"
        else torch.cuda.get_device_name(pair.device)
    )
    from specdec_lab.measurement.methods import draft_module

    module = draft_module(pair)
    draft = f" · {'draft' if module is pair.draft else 'head'} {size(module)}" if module is not None else ""
    return f"target {size(pair.target)}{draft} · {where}, {str(pair.target.dtype).removeprefix('torch.')}"


def result_table(*columns: str) -> Table:
    """A table of results: the first column to the left, numbers to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and column else "left", no_wrap=True)
    return table


def result_facts(result: Any) -> dict[str, Any]:
    """The measured results of one way to decode, by name."""
    names = "tokens_per_second", "speedup", "acceptance", "tokens_per_round", "repeated_share"
    return {name: getattr(result, name) for name in names}


def result_cells(facts: dict[str, Any]) -> tuple[str, str, str, str]:
    """The results of `result_facts` as cells of `result_table`."""
    is_baseline = facts["acceptance"] is None
    return (
        f"{facts['tokens_per_second']:.0f}",
        f"{facts['speedup']:.2f}",
        "" if is_baseline else f"{facts['acceptance']:.0%}",
        "" if is_baseline else f"{facts['tokens_per_round']:.1f}",
    )


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Any]:
    """A progress bar of `total` steps, which disappears at the end. Yields a function that advances it by one step."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:24}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)


def terminal_svg(console: Console, title: str) -> str:
    """An SVG picture of all that `console` printed. It must have been made with record=True.

    The reference to a web font is removed, so that a page with the picture loads nothing from elsewhere.
    """
    picture = console.export_svg(title=title)
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
