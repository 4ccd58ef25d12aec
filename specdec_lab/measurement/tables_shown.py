"""One way to show a result: the same cells as a table in a terminal and in a notebook."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

Cells = Sequence[Sequence[str]]


def rich_table(title: str, columns: Sequence[str], rows: Cells) -> "Table":
    """For the terminal. The first column is words, the others are figures."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def html_table(title: str, columns: Sequence[str], rows: Cells) -> str:
    """The same for a notebook."""
    head = "".join(f'<th style="text-align:{"right" if i else "left"}">{escape(c)}</th>' for i, c in enumerate(columns))
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:{"right" if i else "left"}">{escape(c)}</td>' for i, c in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def mib(count: float) -> str:
    """A number of bytes in MiB, or in GiB from 10 GiB on."""
    return f"{count / 2**30:.1f} GiB" if count >= 10 * 2**30 else f"{count / 2**20:.1f} MiB"
