"""Grade notebooks from outside: one, or a class folder, each submission in its own process, in parallel, resumable."""

import ast
import csv
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specdec_ref.errors import SpecdecError
from specdec_ref.teaching.checks.catalogue import EXERCISES
from specdec_ref.teaching.checks.exercise import Exercise, Verdict
from specdec_ref.teaching.checks.judging import HIDDEN_SEEDS, PUBLIC_SEED, TooSlow, judge
from specdec_ref.teaching.checks.sandbox import Sandbox, StrangerFailed
from specdec_ref.teaching.checks.showing import plain
from specdec_ref.teaching.checks.trusted import Trusted

POINTS = 10
RECORD = "graded.jsonl"
LARGEST = 5_000_000


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
    """The code cells of a notebook, in order, without magics. Raises SpecdecError for a file that is none."""
    try:
        if notebook.stat().st_size > LARGEST:
            raise SpecdecError(f"{notebook.name}: is larger than {LARGEST // 1_000_000} MB")
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecdecError(f"{notebook.name}: is no notebook ({type(error).__name__})") from error
    return ["\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in c.splitlines()) for c in code]


def grade_submission(
    name: str,
    notebooks: Sequence[Path],
    sandbox: Sandbox | Trusted,
    *,
    exercises: Sequence[Exercise] = tuple(EXERCISES.values()),
    seeds: Sequence[int] = (PUBLIC_SEED, *HIDDEN_SEEDS),
) -> Graded:
    """All exercises of one submission, looked for by the names that its notebooks define, wherever they stand.

    Where two notebooks define one name, the one counts that passes.
    """
    best: dict[str, Verdict] = {}
    isolation = ""
    for notebook in notebooks:
        try:
            sources = sources_of(notebook)
        except SpecdecError as error:
            best.setdefault("", Verdict("", "crashed", str(error)))
            continue
        defined = _defined(sources)
        for exercise in exercises:
            if exercise.function not in defined or (exercise.name in best and best[exercise.name].passed):
                continue
            verdict, reached = _one(exercise, sources, sandbox, seeds)
            isolation = reached or isolation
            if exercise.name not in best or verdict.passed or best[exercise.name].outcome == "not attempted":
                best[exercise.name] = verdict
    broken = best.pop("", None)
    absent = broken.headline if broken is not None else "no notebook defines {}"
    verdicts = [
        best.get(e.name, Verdict(e.name, "not attempted", absent.format(e.function), public=False)) for e in exercises
    ]
    return Graded(name, tuple(verdicts), isolation)


def _defined(sources: Sequence[str]) -> set[str]:
    """Names that look like being defined. A cell that cannot be parsed may define any exercise it names."""
    found: set[str] = set()
    for source in sources:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            found |= {e.function for e in EXERCISES.values() if f"def {e.function}" in source}
            continue
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            for target in getattr(node, "targets", []):
                found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return found


def _one(
    exercise: Exercise, sources: Sequence[str], sandbox: Sandbox | Trusted, seeds: Sequence[int]
) -> tuple[Verdict, str]:
    def crashed(headline: str, diagnosis: str = "crashed") -> Verdict:
        return Verdict(exercise.name, "crashed", headline, diagnosis, public=False)

    try:
        with sandbox.open(sources) as stranger:
            if exercise.function not in stranger.names:
                broken = sorted(stranger.broken, key=lambda text: not text.startswith("SyntaxError"))
                why = broken[0] if broken else f"{exercise.function} is not defined"
                kind = "syntax-error" if why.startswith("SyntaxError") else "crashed"
                return crashed(why, kind), stranger.reached
            return judge(exercise, stranger.function(exercise.function), seeds), stranger.reached
    except TooSlow:
        return crashed("the notebook did not come to an end", "endless"), ""
    except StrangerFailed as error:
        return crashed(f"while the cells ran, {error}"), ""


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
    return [f for f in files if ".ipynb_checkpoints" not in f.parts and not f.is_symlink() and f.is_file()]


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
    done = _recorded(record, seeds) if record is not None else {}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
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
            graded = grade_submission(name, everyone[name], local.box, seeds=seeds)
        with lock:
            if record is not None and key not in done:
                with record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, **asdict(graded)}) + "\n")
            results[name] = graded
            on_graded(len(results), len(everyone))

    try:
        with ThreadPoolExecutor(1 if trusted else jobs or os.cpu_count() or 1) as pool:
            for future in [pool.submit(grade, name) for name in everyone]:
                future.result()
    finally:
        for box in open_boxes:
            box.__exit__()
    graded = [results[name] for name in everyone]
    if out is not None:
        write_reports(graded, out)
    return graded


def write_reports(graded: Sequence[Graded], out: Path) -> None:
    """scores.csv, and for each submission a results.json as Gradescope reads it; for a single one in `out` itself."""
    with (out / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["submission", "score", "of", *EXERCISES])
        for one in graded:
            table.writerow([one.submission, one.score, POINTS * len(one.verdicts), *(v.outcome for v in one.verdicts)])
    for one in graded:
        place = out if len(graded) == 1 else out / one.submission
        place.mkdir(parents=True, exist_ok=True)
        (place / "results.json").write_text(json.dumps(one.gradescope(), indent=1), encoding="utf-8")


def _key(name: str, notebooks: Sequence[Path], seeds: Sequence[int]) -> str:
    digest = hashlib.sha256(f"{name}{list(seeds)}".encode())
    for notebook in notebooks:
        digest.update(notebook.name.encode() + notebook.read_bytes()[: LARGEST + 1])
    return digest.hexdigest()[:24]


def _recorded(record: Path, seeds: Sequence[int]) -> dict[str, Graded]:
    """What an earlier run wrote, whole lines only."""
    found: dict[str, Graded] = {}
    if not record.is_file():
        return found
    for line in record.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            verdicts = tuple(Verdict(**{**v, "details": tuple(v["details"])}) for v in entry["verdicts"])
            found[entry["key"]] = Graded(entry["submission"], verdicts, entry["isolation"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
