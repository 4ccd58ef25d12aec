"""Grade notebooks from outside: one, or a class folder, each submission in its own process, in parallel, resumable."""

import csv
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specdec_ref import __version__
from specdec_ref.errors import SpecdecError
from specdec_ref.teaching.checks.catalogue import EXERCISES
from specdec_ref.teaching.checks.exercise import Exercise, StrangerFailed, TooSlow, Verdict, clean
from specdec_ref.teaching.checks.judging import HIDDEN_SEEDS, PUBLIC_SEED, allowed, judge
from specdec_ref.teaching.checks.sandbox import Sandbox
from specdec_ref.teaching.checks.showing import plain
from specdec_ref.teaching.checks.trusted import Trusted

POINTS = 10
RECORD = "graded.jsonl"
PASSING = "grader-failed", "endless"
"""Diagnoses that may have to do with the machine, or with us: they are recorded, and graded again by the next run."""
LARGEST, MOST_NOTEBOOKS, SECONDS_EACH = 5_000_000, 100, 900.0
"""Of one notebook in bytes; of one submission in notebooks, and in seconds after which no more of it is run."""


@dataclass(frozen=True)
class Graded:
    """What a submission got. isolation: how far its process was cut off."""

    submission: str
    verdicts: tuple[Verdict, ...]
    isolation: str = ""

    @property
    def score(self) -> int:
        """Points, `POINTS` for each exercise that passed."""
        return POINTS * sum(v.passed for v in self.verdicts)

    def gradescope(self) -> dict[str, Any]:
        """The content of Gradescope's results.json."""
        tests = [
            {
                "name": EXERCISES[v.exercise].title,
                "score": POINTS * v.passed,
                "max_score": POINTS,
                "status": "passed" if v.passed else "failed",
                "output": plain(v),
            }
            for v in self.verdicts
        ]
        return {"score": self.score, "tests": tests, "output": f"isolation: {self.isolation}"}


def sources_of(notebook: Path) -> list[str]:
    """The code cells of a notebook, in order. Raises SpecdecError for a file that is none."""
    try:
        content = _read(notebook)
    except OSError as error:
        raise SpecdecError(f"{notebook.name}: cannot be read ({error.strerror})") from error
    if len(content) > LARGEST:
        raise SpecdecError(f"{notebook.name}: is larger than {LARGEST // 1_000_000} MB")
    try:
        cells = json.loads(content.decode("utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecdecError(f"{notebook.name}: is no notebook ({type(error).__name__})") from error


def grade_submission(
    name: str,
    notebooks: Sequence[Path],
    sandbox: Sandbox | Trusted,
    *,
    exercises: Sequence[Exercise] = tuple(EXERCISES.values()),
    seeds: Sequence[int] = (PUBLIC_SEED, *HIDDEN_SEEDS),
) -> Graded:
    """All exercises of one submission, looked for by the names that its notebooks define, wherever they stand.

    Where two notebooks define one name, the one counts that comes further.
    """
    sandbox.next_submission()
    best = {e.name: (0, Verdict(e.name, "not attempted", f"no notebook defines {e.function}")) for e in exercises}
    isolation, deadline, unreadable = "", time.monotonic() + SECONDS_EACH, ""
    for notebook in notebooks[:MOST_NOTEBOOKS]:
        try:
            sources = sources_of(notebook)
        except SpecdecError as error:
            unreadable = clean(error)
            continue
        hopeless: Verdict | None = None
        for exercise in exercises:
            if best[exercise.name][1].passed or not _may_define(sources, exercise.function):
                continue
            if time.monotonic() > deadline:
                hopeless = Verdict("", "crashed", f"the notebooks took more than {SECONDS_EACH:.0f} s", "endless")
            if hopeless is None:
                rank, verdict, reached = _one(exercise, sources, sandbox, seeds)
                isolation = reached or isolation
                hopeless = verdict if not reached else None  # its cells did not come to an end: nor would they again
            else:
                rank, verdict = RANKS["crashed"], replace(hopeless, exercise=exercise.name)
            if rank > best[exercise.name][0]:
                best[exercise.name] = rank, verdict
    if unreadable:
        missing = {e.name: Verdict(e.name, "crashed", unreadable, "no-notebook") for e in exercises}
        best = {key: found if found[0] else (0, missing[key]) for key, found in best.items()}
    public = tuple(seeds) == (PUBLIC_SEED,)
    return Graded(name, tuple(replace(verdict, public=public) for _, verdict in best.values()), isolation)


RANKS = {"passed": 4, "wrong": 3, "crashed": 2, "not attempted": 1}
"""Of two answers to one exercise, the one with the higher rank counts; one that is not defined after all has 0."""


def _read(notebook: Path) -> bytes:
    """What it holds, up to one byte more than is allowed. Raises OSError."""
    with notebook.open("rb") as file:
        return file.read(LARGEST + 1)


def _may_define(sources: Sequence[str], name: str) -> bool:
    """Whether a cell looks as if it defined this name. Nothing of a stranger's is parsed in this process, and the time
    that it takes is in proportion to the text: meanwhile nobody else is graded."""
    defines = re.compile(rf"\s*(?:(?:(?:async +)?def|class) +{name}\b|{name} *(?::[^=]*)?=(?!=))")
    imports, word = re.compile(r"import\b"), re.compile(rf"\b{name}\b")
    for line in (line for source in sources if name in source for line in source.splitlines() if name in line):
        found = imports.search(line)
        if defines.match(line) or (found and word.search(line, found.end())):
            return True
    return False


def _is_stub(source: str, name: str) -> bool:
    """Whether a cell looks as if it defined this name and gave nothing."""
    gives = any(line.lstrip().startswith("return") for line in source.splitlines())
    return "NotImplementedError" in source and not gives and _may_define([source], name)


def _one(
    exercise: Exercise, sources: Sequence[str], sandbox: Sandbox | Trusted, seeds: Sequence[int]
) -> tuple[int, Verdict, str]:
    """Its rank, what became of it, and the walls that stood around it; none where the cells did not come to an end.

    A stub that was left below the answer hides it: the cells are graded once more, with the stubs first.
    """
    rank, verdict, reached = _as_it_stands(exercise, sources, sandbox, seeds)
    if verdict.outcome == "not attempted":
        stubs = [source for source in sources if _is_stub(source, exercise.function)]
        others = [source for source in sources if source not in stubs]
        if stubs and _may_define(others, exercise.function):
            again, other, _ = _as_it_stands(exercise, [*stubs, *others], sandbox, seeds)
            if again > rank:
                return again, other, reached
    return rank, verdict, reached


def _as_it_stands(
    exercise: Exercise, sources: Sequence[str], sandbox: Sandbox | Trusted, seeds: Sequence[int]
) -> tuple[int, Verdict, str]:
    """The same, with these cells."""

    def crashed(headline: str, diagnosis: str = "crashed") -> Verdict:
        return Verdict(exercise.name, "crashed", headline, diagnosis)

    try:
        with sandbox.open(sources) as stranger:
            if exercise.function not in stranger.names:
                why = stranger.broken[0] if stranger.broken else f"{exercise.function} is not defined"
                kind = "syntax-error" if why.startswith("SyntaxError") else "crashed"
                return (1 if stranger.broken else 0), crashed(why, kind), stranger.reached
            answer = stranger.function(exercise.function, allowed(seeds))
            verdict = judge(exercise, answer, seeds, limited=stranger.limited)
            broken = _broken_definition(stranger.broken, sources, exercise.function)
            if verdict.outcome == "not attempted" and broken:
                verdict = crashed(broken, "syntax-error")
            return RANKS[verdict.outcome], verdict, stranger.reached
    except TooSlow:
        text = "the cells did not come to an end in time: look for a loop that never stops, or for one that takes long"
        return RANKS["crashed"], crashed(text, "endless"), ""
    except StrangerFailed as error:
        return RANKS["crashed"], crashed(f"while the cells ran, {error}"), ""


def _broken_definition(broken: Sequence[str], sources: Sequence[str], name: str) -> str:
    """Of what failed, the broken syntax of a cell that was to define this name; a stub before it hides that."""
    for line in broken:
        found = re.match(r"SyntaxError: .*of cell (\d{1,6})\)$", line)
        if found and 0 < int(found[1]) <= len(sources) and _may_define([sources[int(found[1]) - 1]], name):
            return line
    return ""


def submissions_in(folder: Path) -> dict[str, list[Path]]:
    """Name → notebooks: of the folder itself, or of each folder in it. Raises SpecdecError where there are none."""
    if folder.is_file():
        return {folder.stem: [folder]}
    if not folder.is_dir():
        raise SpecdecError(f"folder={str(folder)!r:.80}: is not there; takes a notebook or a folder of notebooks")
    if own := _notebooks(folder, deep=False):
        return {folder.resolve().name: own}
    found = {sub.name: _notebooks(sub) for sub in sorted(folder.iterdir()) if sub.is_dir() and sub.name[0] != "."}
    if not found:
        raise SpecdecError(f"folder={str(folder)!r:.80}: has no notebooks and no folders in it")
    return found


def _notebooks(folder: Path, deep: bool = True) -> list[Path]:
    """Plain files only: a link could lead to somebody else's work."""
    files = sorted(folder.rglob("*.ipynb") if deep else folder.glob("*.ipynb"))
    return [file for file in files if ".ipynb_checkpoints" not in file.parts and _is_plain(file)]


def _is_plain(file: Path) -> bool:
    try:
        return not file.is_symlink() and file.is_file()
    except OSError:  # one may not look: whoever reads it tells that
        return True


def grade_folder(
    folder: Path,
    out: Path | None = None,
    *,
    hidden: Sequence[Path] = (),
    seeds: Sequence[int] = (PUBLIC_SEED, *HIDDEN_SEEDS),
    jobs: int | None = None,
    trusted: bool = False,
    on_graded: Callable[[int, int], None] = lambda done, of: None,
) -> list[Graded]:
    """Grade every submission in a folder. out: where reports go, and where an interrupted run goes on from.

    hidden: folders that no submission may see, besides the package and the submissions. jobs: processes at once,
    default one for each core. trusted: your own work, run in this process. Raises SpecdecError.
    """
    everyone = submissions_in(folder)
    record = out / RECORD if out is not None else None
    done = _recorded(record) if record is not None else {}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    if record is not None and record.is_file() and not record.read_bytes().endswith(b"\n"):
        with record.open("a", encoding="utf-8") as file:
            file.write("\n")  # its last line was broken off
    secret = [folder.resolve() if folder.is_dir() else folder.resolve().parent, *(p.resolve() for p in hidden)]
    secret += [out.resolve()] if out is not None else []
    lock, local = threading.Lock(), threading.local()
    results: dict[str, Graded] = {}
    open_boxes: list[Sandbox | Trusted] = []

    def grade(name: str) -> None:
        key = _key(name, everyone[name], seeds)
        if key in done:
            graded = done[key]
        else:
            if not hasattr(local, "box"):
                local.box = Trusted() if trusted else Sandbox(secret)
                with lock:
                    open_boxes.append(local.box)
            try:
                graded = grade_submission(name, everyone[name], local.box, seeds=seeds)
            except Exception as error:  # whatever it did to the grader, the next one is graded
                said = f"the grader failed, please look at this one: {type(error).__name__}: {clean(error)}"
                graded = Graded(name, tuple(Verdict(e, "crashed", said, "grader-failed") for e in EXERCISES))
        with lock:
            if record is not None and key not in done:
                with record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, **asdict(graded)}) + "\n")
            results[name] = graded
            on_graded(len(results), len(everyone))

    try:
        if trusted:  # in this thread, which is the one that an endless loop can be interrupted in
            for name in everyone:
                grade(name)
        else:
            with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
                try:
                    for future in [pool.submit(grade, name) for name in everyone]:
                        future.result()
                except BaseException:  # Ctrl-C: those that have begun come to their end, and are written down
                    pool.shutdown(cancel_futures=True)
                    raise
    finally:
        for box in open_boxes:
            box.__exit__()
    graded = [results[name] for name in everyone]
    if out is not None:
        write_reports(graded, out)
    return graded


def write_reports(graded: Sequence[Graded], out: Path) -> None:
    """scores.csv, and for each submission a results.json as Gradescope reads it; for a single one in `out` itself."""
    with (out / "scores.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(["submission", "score", "of", *EXERCISES])
        for one in graded:
            table.writerow([one.submission, one.score, POINTS * len(one.verdicts), *(v.outcome for v in one.verdicts)])
    for one in graded:
        place = out if len(graded) == 1 else out / one.submission
        place.mkdir(parents=True, exist_ok=True)
        (place / "results.json").write_text(json.dumps(one.gradescope(), indent=1), encoding="utf-8")


def _key(name: str, notebooks: Sequence[Path], seeds: Sequence[int]) -> str:
    """Of a submission as it is now. One that cannot be read is another once it can be."""
    digest = hashlib.sha256(__version__.encode() + os.fsencode(name) + str(list(seeds)).encode())
    for notebook in notebooks[:MOST_NOTEBOOKS]:
        digest.update(os.fsencode(notebook.name))
        try:
            digest.update(_read(notebook))
        except OSError as error:
            digest.update(type(error).__name__.encode())
    return digest.hexdigest()[:24]


def _recorded(record: Path) -> dict[str, Graded]:
    """What an earlier run wrote: whole lines, and nothing that could come out otherwise another time."""
    found: dict[str, Graded] = {}
    if not record.is_file():
        return found
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            verdicts = tuple(Verdict(**verdict) for verdict in entry["verdicts"])
            if not any(verdict.diagnosis in PASSING for verdict in verdicts):
                found[entry["key"]] = Graded(entry["submission"], verdicts, entry["isolation"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
