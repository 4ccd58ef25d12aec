"""specdec grade, specdec progress: exercises from outside."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from specdec_lab.teaching.exercises.reports import Graded

FolderArgument = Annotated[Path, typer.Argument(help="A notebook, a folder of notebooks, or a folder of such folders.")]


def grade(
    folder: FolderArgument = Path("exercises"),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write scores.csv and Gradescope's results.json here, and continue an interrupted run from here. On"
            " Gradescope: /autograder/results."
        ),
    ] = None,
    hide: Annotated[
        list[Path] | None, typer.Option(help="Folders that no submission may see, such as solutions.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="The public checks only, as in the notebook.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Submissions at once (default: one for each core).")] = None,
    seed: Annotated[
        int | None, typer.Option(min=1, help="Of the hidden cases that are drawn: your own, so that none is known.")
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Your own work: run it in this process, on any system.")
    ] = False,
    single: Annotated[
        bool, typer.Option("--single", help="The folder is one submission, with all the folders in it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Grade exercises: each submission in a process of its own, judged by the values that its functions give.

    Each folder in FOLDER is one submission; a FOLDER that holds notebooks and no such folders is a single one. For
    each exercise one notebook counts: the one with the course's own file name, else the nearest to the top, else the
    first by name. Symbolic links are not followed. Exit status 0 when all of them pass, 1 when any does not.
    """
    from rich.console import Console

    from specdec_lab.cli.common import progress_bar
    from specdec_lab.teaching.exercises.grading import grade_folder
    from specdec_lab.teaching.exercises.handed_in import submissions_in
    from specdec_lab.teaching.exercises.judging import HIDDEN_SEEDS, PUBLIC_SEED

    console = Console(quiet=as_json, highlight=False)
    secret = [*(hide or []), *([Path("solutions")] if Path("solutions").is_dir() else [])]
    unseen = HIDDEN_SEEDS if seed is None else (seed, seed + 1)
    seeds = (PUBLIC_SEED,) if public else (PUBLIC_SEED, *unseen)
    handed_in = submissions_in(folder, out, single=single)
    for line in handed_in.left_out:
        print(line, file=sys.stderr)
    with progress_bar(console, len(handed_in.submissions)) as step:
        graded = grade_folder(
            folder,
            out,
            hidden=secret,
            seeds=seeds,
            jobs=jobs,
            trusted=trusted,
            single=single,
            on_stopping=lambda: _say_stopping(out),
            on_graded=lambda done, of: step(f"{done} of {of}"),
        )
    if as_json:
        print(json.dumps([{"submission": one.submission, **one.gradescope()} for one in graded]))
    else:
        _print_grades(console, graded)
    if not all(v.passed for one in graded for v in one.verdicts):
        raise typer.Exit(1)


def _print_grades(console: "Console", graded: "list[Graded]") -> None:
    """Print one submission in full, several as a table, then the notes on each of them."""
    from rich.text import Text

    if len(graded) == 1:
        _print_submission(console, graded[0])
    else:
        _print_table(console, graded)
    for one in graded:
        where = f"{_shown(one.submission)}: " if len(graded) > 1 else ""
        for note in one.notes:
            console.print(Text(f"{where}{note}"))


def _print_submission(console: "Console", one: "Graded") -> None:
    from rich.text import Text

    from specdec_lab.teaching.exercises.grading import POINTS
    from specdec_lab.teaching.exercises.showing import COLORS, plain

    for verdict in one.verdicts:
        console.print(Text(plain(verdict), style=COLORS[verdict.outcome] if verdict.passed else ""))
    console.print(f"{one.score} of {POINTS * len(one.verdicts)} points")


def _print_table(console: "Console", graded: "list[Graded]") -> None:
    from rich.table import Table
    from rich.text import Text

    from specdec_lab.teaching.exercises.showing import MARKS

    table = Table(box=None)
    for column in ("submission", "points", "exercises"):
        table.add_column(column)
    for one in graded:
        marks = " ".join(MARKS[verdict.outcome] for verdict in one.verdicts)
        table.add_row(Text(_shown(one.submission)), str(one.score), marks)
    console.print(table)


def _shown(name: str) -> str:
    """A folder's name as one line, whatever characters it has."""
    from specdec_lab.teaching.exercises.exercise import clean

    return clean(name.encode("utf-8", "backslashreplace").decode("utf-8"))


def _say_stopping(out: Path | None) -> None:
    """Answer Ctrl-C at once. Written without Python's buffers, which may be in use at this moment."""
    kept = "" if out is None else "; what is finished is kept, and the same command continues from there"
    os.write(2, f"\nspecdec: stopping{kept}\n".encode())


def progress(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How far you are over all exercises, by the file in this folder."""
    from specdec_lab.teaching.exercises.notebook import progress as so_far

    found = so_far()
    if as_json:
        lines = [{"outcome": outcome, "title": title, "tries": tries} for outcome, title, tries in found.lines()]
        print(json.dumps(lines))
    else:
        print(found)
