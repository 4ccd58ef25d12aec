"""Find the submissions in a folder and the notebooks of each.

Symbolic links are never followed, because they could lead to somebody else's work or to the solutions. The search is
limited, whatever a student's folder contains, and the student's report lists what was left out.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from specdec_lab.teaching.exercises.exercise import clean
from specdec_ref.errors import SpecdecError

LARGEST, MOST_NOTEBOOKS = 5_000_000, 100
"""Limits: bytes of one notebook, and notebooks of one submission."""
MOST_DEPTH, MOST_ENTRIES, MOST_NOTES = 20, 20_000, 5
"""Limits on one submission: nested folders, files and folders in total, and notes of one kind in the report."""
RECORD = "graded.jsonl"
"""The file in the reports folder from which an interrupted run continues."""
NO_STUDENTS = "__MACOSX", "__pycache__"
"""Folders that archive programs and Python create. They are left out, and so are hidden files and folders."""
A_LINK = "is a symbolic link, which is not followed"
COURSE_NOTEBOOKS = {
    "01_accept": ("accept",),
    "02_residual": ("residual",),
    "03_speedup": ("speedup",),
    "04_rewind": ("rewind",),
    "05_step": ("step",),
    "06_find_bug": ("find_bug", "fix"),
    "07_equivalence_test": ("equivalence_test",),
    "08_decode": ("decode", "speedup_of", "vllm_config"),
    "09_best_draft": ("acceptance", "best_draft"),
    "10_adaptive_k": ("adaptive_k",),
    "11_memory": ("memory",),
    "12_decide": ("decide",),
    "13_block": ("block",),
    "14_candidates": ("candidates",),
    "15_lossless": ("lossless",),
}
"""The file names of the course, and the exercises in each. nbgrader collects notebooks under these names."""
NOTEBOOK_OF = {exercise: f"{stem}.ipynb" for stem, exercises in COURSE_NOTEBOOKS.items() for exercise in exercises}


@dataclass(frozen=True)
class Submission:
    """One student's work. notes: parts of it that cannot be graded, with reasons."""

    name: str
    notebooks: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundSubmissions:
    """All submissions in a folder. left_out: one line for the instructor about each file that is not graded."""

    submissions: tuple[Submission, ...]
    left_out: tuple[str, ...] = ()


def submissions_in(folder: Path, out: Path | None = None, *, single: bool = False) -> FoundSubmissions:
    """Return the submissions in a folder: one for each subfolder, or a single one.

    A folder whose subfolders contain notebooks is a class. Notebooks next to these subfolders are not graded, and
    `left_out` lists them. A folder with notebooks and no such subfolders is one submission.

    Args:
        folder: A notebook, a folder of notebooks, or a folder of such folders.
        out: The folder of the reports, which is not a submission.
        single: Treat `folder` as one submission, with all folders in it.

    Raises:
        SpecdecError: `folder` is missing, is a symbolic link, or contains neither notebooks nor folders.
    """
    shown = f"folder={str(folder)!r:.80}"
    if folder.is_symlink():
        raise SpecdecError(f"{shown}: {A_LINK}; takes the folder that it points to")
    if folder.is_file():
        return FoundSubmissions((Submission(folder.stem, (folder,)),))
    if not folder.is_dir():
        raise SpecdecError(f"{shown}: does not exist; takes a notebook or a folder of notebooks")
    reports = out.resolve() if out is not None else None
    if single:
        return FoundSubmissions((_submission(folder, folder.resolve().name, reports),))
    loose, subfolders, linked = _top_level(folder)
    students = [_submission(sub, sub.name, reports) for sub in subfolders if sub.resolve() != reports]
    students = [
        student for student in students if student.notebooks or not _holds_reports(folder / student.name, reports)
    ]
    links = _shortened([f"{clean(name, 80)} {A_LINK}" for name in linked])
    if loose and not any(student.notebooks for student in students):
        return FoundSubmissions((Submission(folder.resolve().name, _in_order(loose), links),))
    folders = [name for name in linked if not os.path.isfile(folder / name)]
    students += [Submission(name, notes=(f"the submission {A_LINK}",)) for name in folders]
    if not students and linked:
        students = [Submission(folder.resolve().name, notes=links)]
    if not students:
        raise SpecdecError(f"{shown}: contains no notebooks and no folders; takes a notebook or a folder of notebooks")
    return FoundSubmissions(tuple(sorted(students, key=lambda student: student.name)), _loose_line(loose, folder))


def _top_level(folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """The notebooks and folders directly in a class folder, and the names of its symbolic links."""
    loose, subfolders, linked = [], [], []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SpecdecError(f"folder={str(folder)!r:.80}: cannot be read ({error.strerror})") from error
    for entry in entries:
        if _is_left_out(entry.name):
            continue
        if entry.is_symlink():
            linked.append(entry.name)
        elif entry.is_dir():
            subfolders.append(folder / entry.name)
        elif entry.is_file() and entry.name.endswith(".ipynb"):
            loose.append(folder / entry.name)
    return loose, subfolders, linked


def _loose_line(loose: Sequence[Path], folder: Path) -> tuple[str, ...]:
    if not loose:
        return ()
    names = ", ".join(clean(path.name, 40) for path in loose[:3]) + (" …" if len(loose) > 3 else "")
    where = clean(folder.resolve().name, 40)
    return (f"not graded: {names}, outside the students' folders; if {where} is one submission, add --single",)


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in NO_STUDENTS


def _holds_reports(folder: Path, reports: Path | None) -> bool:
    """Whether a folder without notebooks contains reports of this run or of an earlier one."""
    if reports is not None and reports.is_relative_to(folder.resolve()):
        return True
    return (folder / RECORD).is_file()


def _submission(folder: Path, name: str, reports: Path | None) -> Submission:
    """All notebooks in a student's folder, at any depth up to `MOST_DEPTH`."""
    search = _Search(folder, reports)
    search.run()
    return Submission(name, _in_order(search.found), tuple(search.notes()))


class _Search:
    """The search for notebooks in one student's folder, limited in depth and in the number of entries."""

    def __init__(self, folder: Path, reports: Path | None):
        self.folder, self.reports = folder, reports
        self.found: list[Path] = []
        self.links: list[str] = []
        self.problems: list[str] = []
        self.entries = 0
        self.too_deep = False
        self._todo = [(folder, 0)]

    def run(self) -> None:
        """Search all folders up to the limits."""
        while self._todo and self.entries <= MOST_ENTRIES:
            folder, depth = self._todo.pop()
            try:
                with os.scandir(folder) as entries:
                    self._search(entries, folder, depth)
            except OSError as error:
                self.problems.append(f"{self._shown(folder)} cannot be searched ({error.strerror})")

    def _search(self, entries: Iterator[os.DirEntry[str]], parent: Path, depth: int) -> None:
        for entry in entries:
            self.entries += 1
            if self.entries > MOST_ENTRIES:
                return
            path = parent / entry.name
            if _is_left_out(entry.name):
                continue
            if entry.is_symlink():
                self.links.append(f"{self._shown(path)} {A_LINK}")
            elif entry.is_dir():
                self._enter_later(path, depth + 1)
            elif entry.is_file() and entry.name.endswith(".ipynb"):
                self.found.append(path)

    def _enter_later(self, path: Path, depth: int) -> None:
        if depth > MOST_DEPTH:
            self.too_deep = True
        elif self.reports is None or path.resolve() != self.reports:
            self._todo.append((path, depth))

    def _shown(self, path: Path) -> str:
        return clean(path.relative_to(self.folder), 80)

    def notes(self) -> list[str]:
        """Notes for the report about everything that was left out."""
        notes = [*_shortened(sorted(self.links)), *_shortened(sorted(self.problems))]
        if self.too_deep:
            notes.append(f"folders more than {MOST_DEPTH} deep are not searched")
        if self.entries > MOST_ENTRIES:
            notes.append(f"has more than {MOST_ENTRIES:,} files and folders; the rest is not searched")
        if len(self.found) > MOST_NOTEBOOKS:
            notes.append(f"has {len(self.found)} notebooks; only the first {MOST_NOTEBOOKS} are read")
        return notes


def _shortened(notes: Sequence[str]) -> tuple[str, ...]:
    more = len(notes) - MOST_NOTES
    return (*notes[:MOST_NOTES], f"and {more} more like this") if more > 0 else tuple(notes)


def _in_order(notebooks: Sequence[Path]) -> tuple[Path, ...]:
    """The notebooks to read: the course's file names first, then those nearest to the top folder, then by name."""
    names = set(NOTEBOOK_OF.values())

    def rank(path: Path) -> tuple[bool, int, tuple[str, ...]]:
        return path.name not in names, len(path.parts), path.parts

    return tuple(sorted(notebooks, key=rank)[:MOST_NOTEBOOKS])


def by_precedence(notebooks: Sequence[Path], exercise: str) -> list[Path]:
    """Notebooks in the order in which they count for an exercise.

    First the one with the course's file name (02_residual.ipynb for `residual`), then the one nearest to the top folder
    of the submission, then by name.
    """

    def rank(path: Path) -> tuple[bool, int, tuple[str, ...]]:
        return path.name != NOTEBOOK_OF.get(exercise), len(path.parts), path.parts

    return sorted(notebooks, key=rank)


def read_notebook(notebook: Path) -> bytes:
    """The content, up to one byte more than the limit. A symbolic link is not followed. Raises OSError."""
    with open(notebook, "rb", opener=_without_following) as file:
        return file.read(LARGEST + 1)


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def sources_of(notebook: Path) -> list[str]:
    """The code cells of a notebook, in order. Raises SpecdecError for a file that is not a valid notebook."""
    name = clean(notebook.name, 80)
    try:
        content = read_notebook(notebook)
    except OSError as error:
        raise SpecdecError(f"{name}: cannot be read ({error.strerror})") from error
    if len(content) > LARGEST:
        raise SpecdecError(
            f"{name}: is larger than {LARGEST // 1_000_000} MB; clear its outputs (in JupyterLab: Edit, Clear Outputs"
            " of All Cells), save it and submit it again"
        )
    try:
        cells = json.loads(content.decode("utf-8-sig"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecdecError(f"{name}: is not a notebook ({type(error).__name__})") from error
