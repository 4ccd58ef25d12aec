"""What commands share: options, loading a pair, the headline, tables of results, a progress bar.

Heavy imports wait inside the functions, so that `--help` is instant.
"""

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
    str | None, typer.Option(help="Draft model: a folder, hub name, or the name of one that ships.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, … (default: the GPU where there is one).")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16, … (default: float32 on CPU, else bfloat16).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


def check_verification_option(verification: str) -> None:
    """Raise SpecdecError unless --verification is the name of a rule, before anything is loaded."""
    if verification not in ("token", "block"):
        raise SpecdecError(f"--verification {verification}: takes token or block")


def load(target: str | None, draft: str | None, device: str | None, dtype: str | None) -> "Pair":
    """The pair, with the libraries quiet. Raises SpecdecError."""
    quiet_libraries()
    from specdec_ref.loading import load_pair

    return load_pair(target, draft, device=device, dtype=dtype)


def quiet_libraries() -> None:
    """No warnings and no progress bars of transformers."""
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
    draft = f" · draft {size(pair.draft)}" if pair.draft is not None else ""
    return f"target {size(pair.target)}{draft} · {where}, {str(pair.target.dtype).removeprefix('torch.')}"


def result_table(*columns: str) -> Table:
    """A table of results: the first column to the left, numbers to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and column else "left", no_wrap=True)
    return table


def result_facts(result: Any) -> dict[str, Any]:
    """What one way to decode was measured to give, by name."""
    names = "tokens_per_second", "speedup", "acceptance", "tokens_per_round", "repeated_share"
    return {name: getattr(result, name) for name in names}


def result_cells(facts: dict[str, Any]) -> tuple[str, str, str, str]:
    """The same as cells of `result_table`."""
    one = facts["acceptance"] is None
    return (
        f"{facts['tokens_per_second']:.0f}",
        f"{facts['speedup']:.2f}",
        "" if one else f"{facts['acceptance']:.0%}",
        "" if one else f"{facts['tokens_per_round']:.1f}",
    )


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Any]:
    """A progress bar of `total` steps that goes away when done. Yields the function that makes one step."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:24}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)
