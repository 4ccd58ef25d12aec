"""The commands `specdec grade` and `specdec progress`."""

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
            help="Write scores.csv and Gradescope's results.json to this folder; an interrupted run continues from it."
            " On Gradescope, use /autograder/results."
        ),
    ] = None,
    hide: Annotated[
        list[Path] | None, typer.Option(help="Folders that no submission may read, for example solutions.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Run only the public checks, as in the notebook.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Submissions to grade in parallel (default: one per core).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=1, help="Seed of the hidden cases. Your own seed keeps them secret.")
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Grade your own work in this process, without a sandbox, on any system.")
    ] = False,
    single: Annotated[
        bool, typer.Option("--single", help="Treat the folder as one submission, with all folders in it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Grade exercises, each submission in its own process, by the values that its functions return.

    Each folder in FOLDER is one submission. If FOLDER contains notebooks and no such folders, it is a single
    submission. For each exercise, one notebook counts: the one with the course's file name, otherwise the one nearest
    to the top folder, otherwise the first by name. Symbolic links are not followed. Exit status 0 if all exercises
    pass, else 1.
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
            on_graded=lambda completed, total: step(f"{completed} of {total}"),
        )
    if as_json:
        print(json.dumps([{"submission": submission.submission, **submission.gradescope()} for submission in graded]))
    else:
        _print_grades(console, graded)
    if not all(v.passed for submission in graded for v in submission.verdicts):
        raise typer.Exit(1)


def _print_grades(console: "Console", graded: "list[Graded]") -> None:
    """Print a single submission in full or several as a table, then the notes on each."""
    from rich.text import Text

    if len(graded) == 1:
        _print_submission(console, graded[0])
    else:
        _print_table(console, graded)
    for submission in graded:
        where = f"{_shown(submission.submission)}: " if len(graded) > 1 else ""
        for note in submission.notes:
            console.print(Text(f"{where}{note}"))


def _print_submission(console: "Console", graded: "Graded") -> None:
    from rich.text import Text

    from specdec_lab.teaching.exercises.grading import POINTS
    from specdec_lab.teaching.exercises.showing import COLORS, plain

    for result in graded.verdicts:
        console.print(Text(plain(result), style=COLORS[result.outcome] if result.passed else ""))
    console.print(f"{graded.score} of {POINTS * len(graded.verdicts)} points")


def _print_table(console: "Console", graded: "list[Graded]") -> None:
    from rich.table import Table
    from rich.text import Text

    from specdec_lab.teaching.exercises.showing import MARKS

    table = Table(box=None)
    for column in ("submission", "points", "exercises"):
        table.add_column(column)
    for submission in graded:
        marks = " ".join(MARKS[result.outcome] for result in submission.verdicts)
        table.add_row(Text(_shown(submission.submission)), str(submission.score), marks)
    console.print(table)


def _shown(name: str) -> str:
    """A folder's name as one line, with any characters."""
    from specdec_lab.teaching.exercises.exercise import clean

    return clean(name.encode("utf-8", "backslashreplace").decode("utf-8"))


def _say_stopping(out: Path | None) -> None:
    """Print a message at once after Ctrl-C. Python's own buffers may be in use at this moment, hence `os.write`."""
    advice = "" if out is None else "; finished results are saved, and the same command continues from there"
    os.write(2, f"\nspecdec: stopping{advice}\n".encode())


def progress(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show your progress in all exercises, from the progress file in exercises/."""
    from specdec_lab.teaching.exercises.notebook import progress as so_far

    progress_so_far = so_far()
    if as_json:
        lines = [
            {"outcome": outcome, "title": title, "tries": tries} for outcome, title, tries in progress_so_far.lines()
        ]
        print(json.dumps(lines))
    else:
        print(progress_so_far)
