"""Grade one notebook or a class folder: each submission in its own process, in parallel, and resumable."""

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
"""Limit on the characters in the code cells of one submission, which are all in memory while it is graded."""
SECONDS_EACH, SECONDS_TO_STOP = 900.0, 1.0
"""Time limit of one submission, and the time that threads have to stop after Ctrl-C."""


class GradingStopped(TooSlow):
    """Raised after Ctrl-C. Code that does not catch `TooSlow` does not catch this either."""


class CellRunner(Protocol):
    """A `Sandbox` or `Trusted`, which run cells."""

    def next_submission(self) -> None:
        """End all processes of the previous submission."""
        ...

    def open(self, sources: Sequence[str]) -> AbstractContextManager[Any]:
        """The definitions of these cells: names, broken, reached, limited and function(name, seconds)."""


class Notebook:
    """One notebook of a submission, with the results so far."""

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
        self.names: set[str] | None = None  # the names that its cells define, once they ran
        self.broken: list[str] = []  # the failures of its cells
        self.never_ends: CheckResult | None = None  # the result if its cells did not finish; they are not run again

    def code(self) -> int:
        """The number of characters in its code cells."""
        return sum(map(len, self.sources))

    def seems_to_define(self, name: str) -> bool:
        """Whether its text seems to define this name."""
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
        """One line for each notebook that cannot be read."""
        return [notebook.unreadable for notebook in self.notebooks.values() if notebook.unreadable]

    def verdict(self, exercise: Exercise) -> CheckResult:
        """The result of the notebook that counts: by precedence, the first one with an answer that can be judged."""
        ordered = [self.notebooks[path] for path in by_precedence(list(self.notebooks), exercise.name)]
        candidates = [notebook for notebook in ordered if mentions(notebook.sources, exercise.function)]
        stub: CheckResult | None = None
        failed: CheckResult | None = None
        unknown: CheckResult | None = None
        for i, notebook in enumerate(candidates):
            result, was_judged = self._in_notebook(exercise, notebook)
            if result is None:
                continue
            if was_judged and result.outcome != "not attempted":
                return _noted(result, _which_counts(exercise, candidates, i))
            where = _noted(result, f"in {notebook.shown}" if len(ordered) > 1 else "")
            if was_judged:
                stub = stub or result
            elif notebook.seems_to_define(exercise.function):
                failed = failed or where
            else:
                unknown = unknown or where
        return failed or stub or unknown or self._missing(exercise)

    def _missing(self, exercise: Exercise) -> CheckResult:
        """The result if no notebook answers this exercise. The cause may be a notebook that cannot be read."""
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
        """The result of the exercise in this notebook, or None if it is not defined there; and whether it was judged.

        A stub below the answer overrides it. In this case, the cells are run once more with the stubs first.
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
            other_sources = [source for source in notebook.sources if source not in stubs]
            if stubs and any(defines(source, exercise.function) for source in other_sources):
                again, judged_again = self._with_cells(exercise, notebook, [*stubs, *other_sources])
                if again is not None and judged_again and again.outcome != "not attempted":
                    return again, True
        return verdict, was_judged

    def _with_cells(
        self, exercise: Exercise, notebook: Notebook, sources: Sequence[str]
    ) -> tuple[CheckResult | None, bool]:
        """The result with these cells in this order, and whether the exercise was judged."""
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
            text = "the cells did not finish in time: look for a loop that never stops, or one that takes long"
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
    """Grade all exercises of one submission. Each is found by the name of its function, in any notebook.

    One notebook counts for each exercise: the first one with an answer that can be judged, in the order of
    `by_precedence`. A notebook does not count if it cannot be read, if it fails before it defines the function, or if
    the function is still a stub.

    Args:
        name: The name of the submission.
        notebooks: Its notebooks, in any order.
        sandbox: Runs the cells.
        exercises: By default, all exercises of the course.
        seeds: Seeds of the cases.
        notes: Parts of the submission that cannot be graded, with reasons, for the report.
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
    """The path of each notebook, relative to the innermost folder that contains all of them."""
    if not notebooks:
        return {}
    top = os.path.commonpath([path.parent for path in notebooks])
    return {path: path.relative_to(top) for path in notebooks}


def _crashed(exercise: Exercise, headline: str, diagnosis: str) -> CheckResult:
    return CheckResult(exercise.name, "crashed", headline, diagnosis)


def _undefined(exercise: Exercise, notebook: Notebook) -> CheckResult | None:
    """The result if the cells ran without defining the function: the failure of the cell that defines it, or None."""
    if not notebook.broken or not notebook.seems_to_define(exercise.function):
        return None
    why = _broken_definition(notebook.broken, notebook.sources, exercise.function) or notebook.broken[0]
    return _crashed(exercise, why, "syntax-error" if why.startswith("SyntaxError") else "crashed")


def _noted(verdict: CheckResult, note: str) -> CheckResult:
    return replace(verdict, note="; ".join(part for part in (verdict.note, note) if part))


def _which_counts(exercise: Exercise, candidates: Sequence[Notebook], at: int) -> str:
    """A note: the notebook that was judged, those before it without an answer, and those after it that are ignored.

    Empty if no other notebook seems to define the function.
    """

    def named(notebooks: Sequence[Notebook]) -> str:
        names = [clean(notebook.shown, 40) for notebook in notebooks if notebook.seems_to_define(exercise.function)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more

    parts = [f"{clean(candidates[at].shown, 40)} counts for this exercise"]
    if without := named(candidates[:at]):
        parts.append(f"without an answer: {without}")
    if ignored := named(candidates[at + 1 :]):
        parts.append(f"ignored: {ignored}")
    return "; ".join(parts) if len(parts) > 1 else ""


def _watched(answer: Any, ended: list[str]) -> Any:
    """The same function, which appends to `ended` if its process ends."""

    @functools.wraps(answer)
    def call(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except ProcessEnded as error:
            ended.append(str(error))
            raise

    return call


def _is_stub(source: str, name: str) -> bool:
    """Whether a cell seems to define this name as a stub."""
    returns = any(line.lstrip().startswith("return") for line in source.splitlines())
    return "NotImplementedError" in source and not returns and defines(source, name)


def _broken_definition(broken: Sequence[str], sources: Sequence[str], name: str) -> str:
    """The syntax error of a cell that defines this name, which an earlier stub can hide; empty if there is none."""
    for line in broken:
        match = re.match(r"SyntaxError: .*of cell (\d{1,6})\)$", line)
        if match and 0 < int(match[1]) <= len(sources) and defines(sources[int(match[1]) - 1], name):
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
    on_graded: Callable[[int, int], None] = lambda completed, total: None,
    on_stopping: Callable[[], None] = lambda: None,
) -> list[Graded]:
    """Grade every submission in a folder. Ctrl-C stops at once, and finished results are kept in `out`.

    Args:
        folder: A folder as in `submissions_in`.
        out: The folder for reports. An interrupted run continues from there.
        hidden: Folders that no submission may read, in addition to the package and the submissions.
        seeds: Seeds of the cases.
        jobs: Parallel processes; by default, one per core.
        trusted: Grade your own work in this process, without a sandbox.
        single: Treat the folder as one submission, with all folders in it.
        on_graded: Called after each submission with the number of finished ones and the total.
        on_stopping: Called as soon as Ctrl-C is noticed.

    Raises:
        SpecdecError: The folder cannot be read, or the reports cannot be written.
        KeyboardInterrupt: After Ctrl-C.
    """
    submissions = submissions_in(folder, out, single=single).submissions
    if out is not None and len(submissions) > 1 and out.resolve() == folder.resolve():
        raise SpecdecError(f"out={str(out)!r:.80}: is the class folder itself; takes a different folder")
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
        if trusted:  # in the main thread, because only there an endless loop can be interrupted
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
    """A sandbox that starts when it is first needed, and opens no notebooks after grading was stopped."""

    def __init__(self, make: Callable[[], Sandbox | Trusted], stop: threading.Event):
        self._make, self._stop = make, stop
        self._made: Sandbox | Trusted | None = None

    def start(self) -> None:
        """Start the sandbox. Raises SpecdecError if it does not start."""
        if self._made is None:
            self._made = self._make()

    def next_submission(self) -> None:
        """Like `Sandbox.next_submission`. Raises GradingStopped."""
        if self._stop.is_set() or self._made is None:
            raise GradingStopped
        self._made.next_submission()

    def open(self, sources: Sequence[str]) -> AbstractContextManager[Any]:
        """Like `Sandbox.open`. Raises GradingStopped."""
        if self._stop.is_set() or self._made is None:
            raise GradingStopped
        return self._made.open(sources)

    def close(self) -> None:
        """End the sandbox and all processes in it."""
        if self._made is not None:
            self._made.__exit__()


def _safely(submission: Submission, sandbox: _StoppableSandbox, seeds: Sequence[int]) -> Graded:
    """Grade one submission. If the grader fails, the result contains the error, and grading continues."""
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
        message = f"the grader failed; please grade this submission by hand: {type(error).__name__}: {clean(error)}"
    except TooSlow:  # includes GradingStopped, which the caller handles
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
    """Grade submissions in several threads, each with its own sandbox, until all are done or one thread fails.

    The threads are daemons, so that the process can stop without waiting for a long computation.
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
    """Grade the next submission until none is left or grading is stopped. Runs in each thread."""
    # Sandbox processes inherit this. A terminal also sends Ctrl-C to them, but the grader ends them in order.
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
    """Wait for all threads. An interrupt closes the sandboxes, which ends the threads, and is raised again."""
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
    """In the block, Ctrl-C calls on_stopping at once. KeyboardInterrupt is raised at the end of the block.

    Cells could catch KeyboardInterrupt and continue, so `GradingStopped` is raised in the block instead. A second
    Ctrl-C ends the process.
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
    """The file from which an interrupted run continues. done: its results at the start, by key."""

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
                self._write("\n")  # the last line is incomplete
        except OSError as error:
            raise self._failure(error) from error

    def add(self, key: str, graded: Graded) -> None:
        """Append one result. Raises SpecdecError if the file cannot be written."""
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
    """A hash of the content of a submission, so that a changed submission is graded again."""
    digest = hashlib.sha256(__version__.encode() + os.fsencode(submission.name) + str(list(seeds)).encode())
    digest.update("\n".join(submission.notes).encode("utf-8", "backslashreplace"))
    for notebook, shown in _relative(submission.notebooks).items():
        digest.update(os.fsencode(shown))
        try:
            digest.update(read_notebook(notebook))
        except OSError as error:
            digest.update(type(error).__name__.encode())
    return digest.hexdigest()[:24]
