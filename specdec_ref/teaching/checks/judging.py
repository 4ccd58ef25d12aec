"""Judge one answer: run it on every case, find the smallest that differs, and the misconception that explains it."""

import builtins
import ctypes
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from specdec_ref.teaching.checks.cells import told
from specdec_ref.teaching.checks.exercise import (
    Case,
    ChangedArguments,
    Exercise,
    Function,
    Misconception,
    StrangerFailed,
    TooSlow,
    Verdict,
    beside,
    clean,
    fits,
    given,
    observe,
    place_of_difference,
    same,
    shape_of,
)
from specdec_ref.teaching.checks.outcomes import BadRequest
from specdec_ref.teaching.checks.reaching import reaches_for_the_package

SECONDS = 20.0
"""An answer may take so long over the cases of one seed. What the reference takes does not count."""
PUBLIC_SEED, HIDDEN_SEEDS = 0, (101, 102)
STUB = "your code here"
"""What the NotImplementedError of a stub says. PyTorch has some of its own."""


def allowed(seeds: Sequence[int]) -> float:
    """Seconds that an answer may take over the cases of these seeds."""
    return SECONDS * len(seeds)


def judge(exercise: Exercise, function: Any, seeds: Sequence[int] = (PUBLIC_SEED,), *, limited: bool = True) -> Verdict:
    """What becomes of this answer. seeds: of the cases; the public ones by default. Never raises what the answer does.

    The answer runs here, as long as it is `allowed`; limited=False: it sees to that itself, as one of a stranger's does
    (see `sandbox`), by raising TooSlow.
    """
    public = tuple(seeds) == (PUBLIC_SEED,)
    if not callable(function):
        headline = f"{exercise.function} is {shape_of(function)}; takes a function"
        return Verdict(exercise.name, "wrong", headline, "wrong-type", public=public)
    shown = len(exercise.cases(PUBLIC_SEED)) if seeds[0] == PUBLIC_SEED else 0
    try:
        timed = _Timed(function, allowed(seeds)) if limited else function
        verdict = _compared(exercise, timed, tuple(seeds), shown)
    except TooSlow:
        text = f"It did not come to an end within {allowed(seeds):.0f} seconds: look for a loop that never stops,"
        text += " or for work that is done again and again"
        verdict = Verdict(exercise.name, "crashed", text, "endless")
    if verdict.passed:
        said = "public checks passed" if public else "all checks passed"
        verdict = replace(verdict, headline=f"{exercise.title}: {said}", note=reaches_for_the_package(function))
    return replace(verdict, public=public)


class _Timed:
    """A function that may run for so many seconds in all."""

    def __init__(self, function: Function, seconds: float):
        self._function, self._left = function, seconds

    def __call__(self, *arguments: Any) -> Any:
        began = time.monotonic()
        try:
            with time_limit(self._left):
                return self._function(*arguments)
        finally:
            self._left = max(0.001, self._left - (time.monotonic() - began))


@lru_cache(maxsize=256)
def _cases(exercise: Exercise, seeds: tuple[int, ...]) -> tuple[Case, ...]:
    return tuple(case for seed in seeds for case in exercise.cases(seed))


@lru_cache(maxsize=16_384)
def _known(exercise: Exercise, function: Function, seeds: tuple[int, ...], i: int) -> Any:
    """What the reference or a wrong version gives in a case: computed once for all who are graded."""
    return observe(function, _cases(exercise, seeds)[i], exercise.measure)


def _compared(exercise: Exercise, function: Function, seeds: tuple[int, ...], shown: int) -> Verdict:
    """shown: so many of the cases, the first ones, are public."""
    cases = _cases(exercise, seeds)
    values: list[Any] = []
    for i, case in enumerate(cases):
        try:
            values.append(observe(function, case, exercise.measure))
        except TooSlow:
            raise
        except BaseException as error:  # SystemExit and KeyboardInterrupt of the answer, too
            before = _differing(exercise, function, seeds, values, shown)
            if before is not None:
                return before
            failed = _failed(exercise, error, seeds, i)
            if i >= shown > 0:
                return _unseen(_without_its_words(failed))
            return replace(failed, given=given(exercise.reference, case) if failed.case else "")
    return _differing(exercise, function, seeds, values, shown) or Verdict(exercise.name, "passed", exercise.title)


def _differing(
    exercise: Exercise, function: Function, seeds: tuple[int, ...], values: Sequence[Any], shown: int
) -> Verdict | None:
    """What is wrong with these values, or None."""
    cases = _cases(exercise, seeds)[: len(values)]
    expected = [_known(exercise, exercise.reference, seeds, i) for i in range(len(cases))]

    def is_that_of(mistake: Misconception, i: int) -> bool:
        try:
            return same(_known(exercise, mistake.wrong, seeds, i), values[i], exercise.tolerance)
        except Exception:
            return False

    def wrong(i: int, diagnosis: str, headline: str, hint: int = 1, note: str = "") -> Verdict:
        at = place_of_difference(values[i], expected[i], exercise.tolerance)
        yours, right = beside(values[i], expected[i], at)
        right = "" if exercise.secret else right
        verdict = Verdict(exercise.name, "wrong", headline, diagnosis, cases[i].words, yours, right, hint, note=note)
        return _unseen(verdict) if i >= shown > 0 else replace(verdict, given=given(exercise.reference, cases[i], at))

    for i, (value, right) in enumerate(zip(values, expected, strict=True)):
        if not fits(value, right):
            headline = f"{exercise.function} gives {shape_of(value)}; takes {shape_of(right)}"
            if i >= shown > 0:  # a shape or the name of a class can hold the arguments
                headline = f"{exercise.function} gives a value of another kind or shape than it should"
            return wrong(i, "wrong-shape" if hasattr(value, "shape") else "wrong-type", headline)
    differing = [i for i, case in enumerate(cases) if not _agrees(exercise, values[i], expected[i], case)]
    if not differing:
        return None
    for mistake in exercise.misconceptions:
        if all(is_that_of(mistake, i) for i in range(len(cases))):
            return wrong(differing[0], mistake.name, mistake.says, mistake.hint)
    first = differing[0]
    if not all(_gives(exercise, function, case, value) for case, value in zip(cases, values, strict=True)):
        return wrong(first, "own-chance", OTHERWISE)
    right_ones = [i for i in range(len(cases)) if i not in differing]
    possible = [m for m in exercise.misconceptions if _does_not_show(exercise, m, seeds, right_ones)]
    telling = [i for i in differing if _tells_much(values[i])]
    whole = [m for m in possible if telling and all(is_that_of(m, i) for i in telling)]
    if len(whole) == 1:
        return wrong(first, whole[0].name, whole[0].says, whole[0].hint)
    partly = [m for m in possible if first in telling and is_that_of(m, first)]
    if len({m.says for m in partly}) == 1:  # perhaps two mistakes at once
        return wrong(first, "unknown", exercise.otherwise, partly[0].hint, f"this case looks like: {partly[0].says}")
    return wrong(first, "unknown", exercise.otherwise)


def _does_not_show(exercise: Exercise, mistake: Misconception, seeds: tuple[int, ...], cases: Iterable[int]) -> bool:
    """Whether who makes this mistake would be right in all of these cases."""
    try:
        return all(
            _agrees(
                exercise,
                _known(exercise, mistake.wrong, seeds, i),
                _known(exercise, exercise.reference, seeds, i),
                _cases(exercise, seeds)[i],
            )
            for i in cases
        )
    except Exception:
        return False


def _tells_much(value: Any) -> bool:
    """Whether one value is enough to recognise a mistake by: a tensor of numbers or several things, no yes or no."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, (dict, float)) or (isinstance(value, (tuple, list)) and len(value) > 1)


OTHERWISE = (
    "It gives another value when asked again: use what is handed in, no chance and no memory of its own (a list as"
    " default argument, a global?)"
)
HIDDEN = "your answer passes the public checks; this case is one of those that you do not see in the notebook"
UNSEEN = "a case that you are not shown"


def _unseen(verdict: Verdict) -> Verdict:
    """The same in a hidden case: neither the case nor what is due in it, for they would be no secret any more."""
    note = "; ".join(part for part in (verdict.note, HIDDEN) if part)
    return replace(verdict, case=UNSEEN, yours="", expected="", given="", note=note)


def _without_its_words(verdict: Verdict) -> Verdict:
    """The same without the text that an answer chose: an exception's message can hold the arguments of a hidden case,
    and so can a class name or a line number, so that only Python's own exceptions are named."""
    if verdict.diagnosis == "bad-request":
        return replace(verdict, headline="It asks chance for something that is no probability, or asks too often")
    if verdict.diagnosis != "crashed":
        return verdict
    name = re.match(r"\w*", verdict.headline)
    kind = getattr(builtins, name[0], None) if name is not None else None
    if isinstance(kind, type) and issubclass(kind, BaseException):
        return replace(verdict, headline=f"It raises {kind.__name__}")
    return replace(verdict, headline="It raises an exception of its own, or ends its process")


def _agrees(exercise: Exercise, value: Any, right: Any, case: Case) -> bool:
    """Whether a value is as good as the right one. A value that cannot even be looked at is not."""
    try:
        if exercise.agrees is not None:
            return exercise.agrees(value, right, case)
        return same(value, right, exercise.tolerance)
    except Exception:
        return False


def _gives(exercise: Exercise, function: Function, case: Case, value: Any) -> bool:
    """Whether a wrong version gives this value."""
    try:
        return same(observe(function, case, exercise.measure), value, exercise.tolerance)
    except Exception:
        return False


def _failed(exercise: Exercise, error: BaseException, seeds: tuple[int, ...], i: int) -> Verdict:
    """In case i; in all before it the values are right."""
    case = _cases(exercise, seeds)[i]
    if isinstance(error, NotImplementedError) and clean(error) in ("", STUB):
        return Verdict(exercise.name, "not attempted", f"{exercise.title}: not attempted yet")
    if isinstance(error, ChangedArguments):
        text = "It writes into its arguments, which belong to the caller: copy what you change"
        return Verdict(exercise.name, "wrong", text, "changes-arguments", case.words)
    for mistake in exercise.misconceptions:  # a wrong version that fails there in the same way
        if _fails_alike(exercise, mistake.wrong, case, error) and _does_not_show(exercise, mistake, seeds, range(i)):
            said = clean(error)
            return Verdict(exercise.name, "wrong", mistake.says, mistake.name, case.words, said, "", mistake.hint)
    if isinstance(error, BadRequest):
        return Verdict(exercise.name, "wrong", clean(error), "bad-request", case.words, hint=1)
    said = clean(error, 200)
    if isinstance(error, StrangerFailed):
        return Verdict(exercise.name, "crashed", said, "crashed", case.words)
    frames = traceback.extract_tb(error.__traceback__)
    at = f" (line {frames[-1].lineno} of {frames[-1].name})" if frames and frames[-1].filename != __file__ else ""
    kind = clean(type(error).__name__, 80)
    return Verdict(exercise.name, "crashed", f"{kind}: {said}{at}" if said else f"{kind}{at}", "crashed", case.words)


def _fails_alike(exercise: Exercise, function: Function, case: Case, error: BaseException) -> bool:
    """Whether a wrong version fails with the same kind of error and in the same words."""
    said = clean(error) if isinstance(error, StrangerFailed) else clean(told(error))
    try:
        observe(function, case, exercise.measure)
    except BadRequest as other:
        return str(other) == str(error)
    except Exception as other:
        if isinstance(error, BadRequest):
            return False
        if isinstance(other, ArithmeticError):  # integers and floats have other words for it
            return said.startswith(type(other).__name__)
        return said.split(" (line ")[0] == clean(told(other))
    return False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow inside after so long, and again every second, in case somebody swallows it.

    By a signal in the main thread of a Unix, which ends a sleep as well; elsewhere when the next line of Python runs.
    """
    over = threading.Event()
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():

        def stop(*_: object) -> None:
            if not over.is_set():
                raise TooSlow

        began, old = time.monotonic(), signal.signal(signal.SIGALRM, stop)
        outer, every = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        try:
            yield
        finally:
            over.set()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
            if outer:  # a limit around this one goes on
                signal.setitimer(signal.ITIMER_REAL, max(0.001, outer - (time.monotonic() - began)), every)
        return
    here = ctypes.c_ulong(threading.get_ident())

    def watch() -> None:
        left = seconds
        while not over.wait(left):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(here, ctypes.py_object(TooSlow))
            left = 1.0

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
