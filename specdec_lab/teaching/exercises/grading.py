"""Grade notebooks from outside: one, or a class folder, each submission in its own process, in parallel, resumable."""

import functools
import hashlib
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.defining import defines, mentions
from specdec_lab.teaching.exercises.exercise import (
    CheckResult,
    Exercise,
    ProcessEnded,
    SubmissionFailed,
    TooSlow,
    clean,
)
from specdec_lab.teaching.exercises.handed_in import (
    LARGEST,
    NOTEBOOK_OF,
    RECORD,
    Submission,
    by_precedence,
    read_notebook,
    sources_of,
    submissions_in,
)
from specdec_lab.teaching.exercises.judging import HIDDEN_SEEDS, PUBLIC_SEED, allowed, judge
from specdec_lab.teaching.exercises.reports import (
    POINTS,
    PROCESS_ENDED,
    Graded,
    record_line,
    recorded,
    write_reports,
)
from specdec_lab.teaching.exercises.sandbox import Sandbox
from specdec_lab.teaching.exercises.trusted import Trusted
from specdec_ref import __version__
from specdec_ref.errors import SpecdecError

__all__ = [
    "LARGEST",
    "POINTS",
    "Graded",
    "grade_folder",
    "grade_submission",
    "sources_of",
    "submissions_in",
    "write_reports",
]
MOST_CODE = 5_000_000
"""Characters in the code cells of one submission: so much of every submission that is being graded is in memory."""
SECONDS_EACH, SECONDS_TO_STOP = 900.0, 1.0
"""Of one submission, after which no more of it is run; and what is waited for after Ctrl-C."""


class GradingStopped(TooSlow):
    """Ctrl-C. Whatever lets a `TooSlow` through lets this through as well."""


class CellRunner(Protocol):
    """What runs cells: a `Sandbox`, or `Trusted`."""

    def next_submission(self) -> None:
        """End everything of the submission before."""
        ...

    def open(self, sources: Sequence[str]) -> AbstractContextManager[Any]:
        """What these cells define: names, broken, reached, limited and function(name, seconds)."""


class Notebook:
    """One notebook of a submission, and what is known of it so far."""

    def __init__(self, path: Path, shown: str, most_code: int):
        self.path, self.shown = path, shown
        self.sources: list[str] = []
        self.unreadable = ""
        try:
            self.sources = sources_of(path)
        except SpecdecError as error:
            self.unreadable = clean(error)
        if self.code() > most_code:
            self.sources = []
            self.unreadable = f"{shown}: not read; the submission has more than {MOST_CODE // 1_000_000} MB of code"
        self.names: set[str] | None = None  # what its cells define, once they have run
        self.broken: list[str] = []  # what failed in them then
        self.never_ends: CheckResult | None = None  # its cells did not come to an end, and would not the next time

    def code(self) -> int:
        """Characters in its code cells."""
        return sum(map(len, self.sources))

    def seems_to_define(self, name: str) -> bool:
        """Whether its text looks as if it did."""
        return any(defines(source, name) for source in self.sources)


class SubmissionRun:
    """One submission being graded: its notebooks, the sandbox, the seeds, and the time that is left."""

    def __init__(self, notebooks: Sequence[Path], sandbox: CellRunner, seeds: Sequence[int]):
        self.notebooks: dict[Path, Notebook] = {}
        left = MOST_CODE
        for path, shown in _relative(notebooks).items():
            self.notebooks[path] = Notebook(path, clean(shown, 80), left)
            left -= self.notebooks[path].code()
        self.sandbox, self.seeds = sandbox, tuple(seeds)
        self.isolation = ""
        self.deadline = time.monotonic() + SECONDS_EACH

    def unreadable(self) -> list[str]:
        """What is wrong with the notebooks that cannot be read, a line each."""
        return [notebook.unreadable for notebook in self.notebooks.values() if notebook.unreadable]

    def verdict(self, exercise: Exercise) -> CheckResult:
        """The verdict of the notebook that counts: the first, by precedence, with an answer that can be judged."""
        ordered = [self.notebooks[path] for path in by_precedence(list(self.notebooks), exercise.name)]
        candidates = [notebook for notebook in ordered if mentions(notebook.sources, exercise.function)]
        stub: CheckResult | None = None
        failed: CheckResult | None = None
        unknown: CheckResult | None = None
        for i, notebook in enumerate(candidates):
            found, was_judged = self._in_notebook(exercise, notebook)
            if found is None:
                continue
            if was_judged and found.outcome != "not attempted":
                return _noted(found, _which_counts(exercise, candidates, i))
            where = _noted(found, f"in {notebook.shown}" if len(ordered) > 1 else "")
            if was_judged:
                stub = stub or found
            elif notebook.seems_to_define(exercise.function):
                failed = failed or where
            else:
                unknown = unknown or where
        return failed or stub or unknown or self._missing(exercise)

    def _missing(self, exercise: Exercise) -> CheckResult:
        """No notebook answers this exercise: its own notebook cannot be read, or which one it is cannot be known."""
        own = NOTEBOOK_OF.get(exercise.name)
        broken = [n for n in self.notebooks.values() if n.unreadable]
        own_broken = [n for n in broken if n.path.name == own]
        others_broken = [n for n in broken if n.path.name not in NOTEBOOK_OF.values()]
        own_is_readable = any(n.path.name == own and not n.unreadable for n in self.notebooks.values())
        at_fault = own_broken or ([] if own_is_readable else others_broken)
        if not at_fault:
            text = f"no notebook defines the function {exercise.function}"
            return CheckResult(exercise.name, "not attempted", text)
        message = "; ".join(notebook.unreadable for notebook in at_fault[:3])
        if len(at_fault) > 3:
            message += f"; and {len(at_fault) - 3} more"
        return CheckResult(exercise.name, "crashed", message, "no-notebook")

    def _in_notebook(self, exercise: Exercise, notebook: Notebook) -> tuple[CheckResult | None, bool]:
        """What becomes of the exercise in this notebook, None where it is not defined; and whether it was judged.

        A stub that was left below the answer hides it: then the cells are run once more, with the stubs first.
        """
        if notebook.names is not None and exercise.function not in notebook.names:
            return _undefined(exercise, notebook), False
        if time.monotonic() > self.deadline:
            text = f"the notebooks took more than {SECONDS_EACH:.0f} s"
            return CheckResult(exercise.name, "crashed", text, "endless"), False
        if notebook.never_ends is not None:
            return replace(notebook.never_ends, exercise=exercise.name), False
        verdict, was_judged = self._with_cells(exercise, notebook, notebook.sources)
        if was_judged and verdict is not None and verdict.outcome == "not attempted":
            stubs = [source for source in notebook.sources if _is_stub(source, exercise.function)]
            others = [source for source in notebook.sources if source not in stubs]
            if stubs and any(defines(source, exercise.function) for source in others):
                again, judged_again = self._with_cells(exercise, notebook, [*stubs, *others])
                if again is not None and judged_again and again.outcome != "not attempted":
                    return again, True
        return verdict, was_judged

    def _with_cells(
        self, exercise: Exercise, notebook: Notebook, sources: Sequence[str]
    ) -> tuple[CheckResult | None, bool]:
        """The same, with these cells as they stand."""
        name = exercise.function
        try:
            with self.sandbox.open(sources) as running:
                self.isolation = running.reached or self.isolation
                notebook.names, notebook.broken = set(running.names), list(running.broken)
                if name not in running.names:
                    return _undefined(exercise, notebook), False
                ended: list[str] = []
                answer = running.function(name, allowed(self.seeds))
                if not running.limited:
                    answer = _watched(answer, ended)
                verdict = judge(exercise, answer, self.seeds, limited=running.limited)
                if ended and verdict.outcome == "crashed":
                    verdict = replace(verdict, diagnosis=PROCESS_ENDED)
                broken = _broken_definition(running.broken, sources, name)
                if verdict.outcome == "not attempted" and broken:
                    return _crashed(exercise, broken, "syntax-error"), False
                return verdict, True
        except GradingStopped:
            raise
        except TooSlow:
            text = "the cells did not come to an end in time: look for a loop that never stops, or one that takes long"
            notebook.never_ends = _crashed(exercise, text, "endless")
        except SubmissionFailed as error:
            kind = PROCESS_ENDED if isinstance(error, ProcessEnded) else "crashed"
            notebook.never_ends = _crashed(exercise, f"while the cells ran, {error}", kind)
        return notebook.never_ends, False


def grade_submission(
    name: str,
    notebooks: Sequence[Path],
    sandbox: CellRunner,
    *,
    exercises: Sequence[Exercise] = tuple(EXERCISES.values()),
    seeds: Sequence[int] = (PUBLIC_SEED, *HIDDEN_SEEDS),
    notes: Sequence[str] = (),
) -> Graded:
    """Grade all exercises of one submission. Each is looked for by the name of its function, wherever it is defined.

    One notebook counts for each exercise: the first whose answer can be judged. The order is that of `by_precedence`:
    the notebook with the course's own file name, then the nearest to the top, then by name. A notebook that cannot be
    read, that fails before it defines the function, or in which it is still to be written does not count.

    Args:
        name: of the submission.
        notebooks: in any order.
        sandbox: where the cells run.
        exercises: all of the course by default.
        seeds: of the cases.
        notes: what of the submission cannot be graded, and why, for the report.
    """
    sandbox.next_submission()
    run = SubmissionRun(notebooks, sandbox, seeds)
    verdicts = [run.verdict(exercise) for exercise in exercises]
    if not notebooks and notes:
        verdicts = [CheckResult(e.name, "crashed", clean("; ".join(notes)), "no-notebook") for e in exercises]
    public = tuple(seeds) == (PUBLIC_SEED,)
    verdicts = [replace(verdict, public=public) for verdict in verdicts]
    return Graded(name, tuple(verdicts), run.isolation, (*notes, *run.unreadable()))


def _relative(notebooks: Sequence[Path]) -> dict[Path, Path]:
    """Each notebook's path from the innermost folder that holds all of them."""
    if not notebooks:
        return {}
    top = os.path.commonpath([path.parent for path in notebooks])
    return {path: path.relative_to(top) for path in notebooks}


def _crashed(exercise: Exercise, headline: str, diagnosis: str) -> CheckResult:
    return CheckResult(exercise.name, "crashed", headline, diagnosis)


def _undefined(exercise: Exercise, notebook: Notebook) -> CheckResult | None:
    """Cells ran and did not define the function: what failed in them, where one was to define it, or None."""
    if not notebook.broken or not notebook.seems_to_define(exercise.function):
        return None
    why = _broken_definition(notebook.broken, notebook.sources, exercise.function) or notebook.broken[0]
    return _crashed(exercise, why, "syntax-error" if why.startswith("SyntaxError") else "crashed")


def _noted(verdict: CheckResult, note: str) -> CheckResult:
    return replace(verdict, note="; ".join(part for part in (verdict.note, note) if part))


def _which_counts(exercise: Exercise, candidates: Sequence[Notebook], at: int) -> str:
    """Which notebook was judged, which before it has no answer, and which after it were not looked at.

    Nothing where no other notebook seems to define the function.
    """

    def named(notebooks: Sequence[Notebook]) -> str:
        names = [clean(one.shown, 40) for one in notebooks if one.seems_to_define(exercise.function)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more

    parts = [f"{clean(candidates[at].shown, 40)} counts for this exercise"]
    if without := named(candidates[:at]):
        parts.append(f"without an answer: {without}")
    if ignored := named(candidates[at + 1 :]):
        parts.append(f"ignored: {ignored}")
    return "; ".join(parts) if len(parts) > 1 else ""


def _watched(answer: Any, ended: list[str]) -> Any:
    """The same function, which adds to `ended` when its process ends."""

    @functools.wraps(answer)
    def call(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except ProcessEnded as error:
            ended.append(str(error))
            raise

    return call


def _is_stub(source: str, name: str) -> bool:
    """Whether a cell looks as if it defined this name and returned nothing."""
    returns = any(line.lstrip().startswith("return") for line in source.splitlines())
    return "NotImplementedError" in source and not returns and defines(source, name)


def _broken_definition(broken: Sequence[str], sources: Sequence[str], name: str) -> str:
    """Of what failed, the broken syntax of a cell that was to define this name; a stub before it hides that."""
    for line in broken:
        found = re.match(r"SyntaxError: .*of cell (\d{1,6})\)$", line)
        if found and 0 < int(found[1]) <= len(sources) and defines(sources[int(found[1]) - 1], name):
            return line
    return ""


def grade_folder(
    folder: Path,
    out: Path | None = None,
    *,
    hidden: Sequence[Path] = (),
    seeds: Sequence[int] = (PUBLIC_SEED, *HIDDEN_SEEDS),
    jobs: int | None = None,
    trusted: bool = False,
    single: bool = False,
    on_graded: Callable[[int, int], None] = lambda done, of: None,
    on_stopping: Callable[[], None] = lambda: None,
) -> list[Graded]:
    """Grade every submission in a folder. Ctrl-C stops at once; what is finished is kept in `out`.

    Args:
        folder: as `submissions_in` takes it.
        out: where reports go, and where an interrupted run continues from.
        hidden: folders that no submission may see, besides the package and the submissions.
        seeds: of the cases.
        jobs: processes at once, default one for each core.
        trusted: your own work, run in this process.
        single: the folder is one submission, whatever folders are in it.
        on_graded: receives how many are graded, and of how many.
        on_stopping: called as soon as Ctrl-C is noticed.

    Raises:
        SpecdecError: the folder or the reports cannot be read or written.
        KeyboardInterrupt: after Ctrl-C.
    """
    submissions = submissions_in(folder, out, single=single).submissions
    if out is not None and len(submissions) > 1 and out.resolve() == folder.resolve():
        raise SpecdecError(f"out={str(out)!r:.80}: is the class folder itself; takes another folder")
    record = _Record(out)
    secret = [folder.resolve() if folder.is_dir() else folder.resolve().parent, *(p.resolve() for p in hidden)]
    secret += [out.resolve()] if out is not None else []
    stop = threading.Event()
    results: dict[str, Graded] = {}
    lock = threading.Lock()

    def grade(submission: Submission, sandbox: "_StoppableSandbox") -> None:
        key = _key(submission, seeds)
        graded = record.done.get(key)
        if graded is None:
            graded = _safely(submission, sandbox, seeds)
            if stop.is_set():
                return
            record.add(key, graded)
        with lock:
            results[submission.name] = graded
            on_graded(len(results), len(submissions))

    with _stopped_by_ctrl_c(stop, on_stopping):
        if trusted:  # in this thread, which is the one that an endless loop can be interrupted in
            sandbox = _StoppableSandbox(Trusted, stop)
            for submission in submissions:
                if not stop.is_set():
                    grade(submission, sandbox)
        else:
            _in_threads(submissions, grade, lambda: _StoppableSandbox(lambda: Sandbox(secret), stop), jobs, stop)
    graded = [results[submission.name] for submission in submissions]
    if out is not None:
        write_reports(graded, out)
    return graded


class _StoppableSandbox:
    """A sandbox that starts when it is first needed, and opens no more notebooks once grading is to stop."""

    def __init__(self, make: Callable[[], Sandbox | Trusted], stop: threading.Event):
        self._make, self._stop = make, stop
        self._made: Sandbox | Trusted | None = None

    def start(self) -> None:
        """Raises SpecdecError where the sandbox cannot start."""
        if self._made is None:
            self._made = self._make()

    def next_submission(self) -> None:
        """As `Sandbox.next_submission`. Raises GradingStopped."""
        if self._stop.is_set() or self._made is None:
            raise GradingStopped
        self._made.next_submission()

    def open(self, sources: Sequence[str]) -> AbstractContextManager[Any]:
        """As `Sandbox.open`. Raises GradingStopped."""
        if self._stop.is_set() or self._made is None:
            raise GradingStopped
        return self._made.open(sources)

    def close(self) -> None:
        """End it and all that runs in it."""
        if self._made is not None:
            self._made.__exit__()


def _safely(submission: Submission, sandbox: _StoppableSandbox, seeds: Sequence[int]) -> Graded:
    """Grade one submission; whatever it does to the grader is written down, and the next one is graded."""
    sandbox.start()
    try:
        return grade_submission(
            submission.name,
            submission.notebooks,
            sandbox,
            seeds=seeds,
            notes=submission.notes,
        )
    except Exception as error:
        message = f"the grader failed, please look at this one: {type(error).__name__}: {clean(error)}"
    except TooSlow:  # GradingStopped among them; the caller sees to that
        message = "the grader was interrupted"
    verdicts = tuple(CheckResult(name, "crashed", message, "grader-failed") for name in EXERCISES)
    return Graded(submission.name, verdicts, notes=submission.notes)


def _in_threads(
    submissions: Sequence[Submission],
    grade: Callable[[Submission, _StoppableSandbox], None],
    new_sandbox: Callable[[], _StoppableSandbox],
    jobs: int | None,
    stop: threading.Event,
) -> None:
    """Grade submissions in several threads, each with its own sandbox, until all are done or one of them fails.

    The threads are daemons, so that a process that is to stop does not wait for a long computation in them.
    """
    waiting = deque(submissions)
    sandboxes = [new_sandbox() for _ in range(min(jobs or os.cpu_count() or 1, len(submissions)))]
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        stop.set()
        for sandbox in sandboxes:
            sandbox.close()

    threads = [
        threading.Thread(target=_grade_waiting, args=(waiting, grade, sandbox, stop, fail), daemon=True)
        for sandbox in sandboxes
    ]
    for thread in threads:
        thread.start()
    _join(threads, sandboxes, stop)
    if failures:
        raise failures[0]


def _grade_waiting(
    waiting: deque[Submission],
    grade: Callable[[Submission, _StoppableSandbox], None],
    sandbox: _StoppableSandbox,
    stop: threading.Event,
    fail: Callable[[BaseException], None],
) -> None:
    """What one thread does: grade the next submission until none is left or all are to stop."""
    # The processes of sandboxes inherit this: a terminal sends Ctrl-C to them as well, and they are ended in order.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        while waiting and not stop.is_set():
            grade(waiting.popleft(), sandbox)
    except IndexError:  # another thread took the last one
        pass
    except BaseException as error:
        fail(error)
    finally:
        sandbox.close()


def _join(threads: Sequence[threading.Thread], sandboxes: Sequence[_StoppableSandbox], stop: threading.Event) -> None:
    """Wait for all threads. An interrupt ends the sandboxes, and with them the threads, and is raised again."""
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        for sandbox in sandboxes:
            sandbox.close()
        for thread in threads:
            thread.join(SECONDS_TO_STOP / len(threads))
        raise


@contextmanager
def _stopped_by_ctrl_c(stop: threading.Event, on_stopping: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C calls on_stopping at once, and raises KeyboardInterrupt when that has been noticed everywhere.

    One's own cells can catch KeyboardInterrupt, and would go on: inside it is `GradingStopped`. A second Ctrl-C ends
    the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stop.set()
        on_stopping()
        raise GradingStopped

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except GradingStopped:
        pass
    finally:
        signal.signal(signal.SIGINT, before)
    if stop.is_set():
        raise KeyboardInterrupt


class _Record:
    """The file from which an interrupted run continues. done: what it held, by key."""

    def __init__(self, out: Path | None):
        self._file = out / RECORD if out is not None else None
        self._lock = threading.Lock()
        self.done: dict[str, Graded] = {}
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self.done = recorded(self._file)
            if self._file.is_file() and not self._file.read_bytes().endswith(b"\n"):
                self._write("\n")  # its last line was broken off
        except OSError as error:
            raise self._failure(error) from error

    def add(self, key: str, graded: Graded) -> None:
        """Write one result down. Raises SpecdecError."""
        if self._file is None:
            return
        try:
            with self._lock:
                self._write(record_line(key, graded))
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, text: str) -> None:
        assert self._file is not None
        with self._file.open("a", encoding="utf-8") as file:
            file.write(text)

    def _failure(self, error: OSError) -> SpecdecError:
        return SpecdecError(f"out: {self._file} cannot be read or written ({error.strerror})")


def _key(submission: Submission, seeds: Sequence[int]) -> str:
    """Of a submission as it is now. One that cannot be read is another once it can be."""
    digest = hashlib.sha256(__version__.encode() + os.fsencode(submission.name) + str(list(seeds)).encode())
    digest.update("\n".join(submission.notes).encode("utf-8", "backslashreplace"))
    for notebook, shown in _relative(submission.notebooks).items():
        digest.update(os.fsencode(shown))
        try:
            digest.update(read_notebook(notebook))
        except OSError as error:
            digest.update(type(error).__name__.encode())
    return digest.hexdigest()[:24]
