"""Judge one answer: run it on every case, and find the smallest case that fails and the misconception behind it."""

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

from specdec_lab.teaching.exercises.cells import describe_error
from specdec_lab.teaching.exercises.exercise import (
    ChangedArguments,
    CheckResult,
    Exercise,
    ExerciseCase,
    Function,
    Misconception,
    SubmissionFailed,
    TooSlow,
    both_shown,
    clean,
    given,
    is_right,
    misfit,
    observe,
    place_of_difference,
    repeats,
    same,
    shape_of,
)
from specdec_lab.teaching.exercises.hidden import PUBLIC_SEED as PUBLIC_SEED
from specdec_lab.teaching.exercises.outcomes import BadRequest
from specdec_lab.teaching.exercises.reaching import reaches_for_the_package

SECONDS = 20.0
"""Time limit of an answer for the cases of one seed. The time of the reference does not count."""
HIDDEN_SEEDS = (101, 102)
STUB = "your code here"
"""The message of a stub's NotImplementedError, which tells it from those that PyTorch raises."""


def allowed(seeds: Sequence[int]) -> float:
    """Time limit in seconds for the cases of these seeds."""
    return SECONDS * len(seeds)


def judge(
    exercise: Exercise, function: Any, seeds: Sequence[int] = (PUBLIC_SEED,), *, limited: bool = True
) -> CheckResult:
    """Judge an answer. Never raises an exception of the answer.

    Args:
        exercise: The exercise.
        function: The answer. It runs in this process, for at most `allowed(seeds)` seconds.
        seeds: Seeds of the cases; by default, that of the public cases.
        limited: False for a function that raises TooSlow itself, as one in a sandbox does.
    """
    public = tuple(seeds) == (PUBLIC_SEED,)
    if not callable(function):
        headline = f"{exercise.function} is {shape_of(function)}; expected a function"
        return CheckResult(exercise.name, "wrong", headline, "wrong-type", public=public)
    shown = len(exercise.cases(PUBLIC_SEED)) if seeds[0] == PUBLIC_SEED else 0
    try:
        timed = _Timed(function, allowed(seeds)) if limited else function
        verdict = _compared(exercise, timed, tuple(seeds), shown)
    except TooSlow:
        text = f"Your function did not finish within {allowed(seeds):.0f} seconds. Look for a loop that never stops,"
        text += " or for repeated work"
        verdict = CheckResult(exercise.name, "crashed", text, "endless")
    if verdict.passed:
        message = "public checks passed" if public else "all checks passed"
        verdict = replace(verdict, headline=f"{exercise.title}: {message}", note=reaches_for_the_package(function))
    return replace(verdict, public=public)


class _Timed:
    """A function with a time limit for all its calls together."""

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
def _cases(exercise: Exercise, seeds: tuple[int, ...]) -> tuple[ExerciseCase, ...]:
    return tuple(case for seed in seeds for case in exercise.cases(seed))


@lru_cache(maxsize=16_384)
def _known(exercise: Exercise, function: Function, seeds: tuple[int, ...], i: int) -> Any:
    """The value of the reference or of a wrong version in a case, computed once for all submissions."""
    return observe(function, _cases(exercise, seeds)[i], exercise.measure)


def _compared(exercise: Exercise, function: Function, seeds: tuple[int, ...], shown: int) -> CheckResult:
    """Compare an answer with the reference. shown: the number of public cases, which come first."""
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
            failed = _failed(exercise, function, error, seeds, i)
            if i >= shown > 0:
                return _unseen(_without_its_words(failed))
            return replace(failed, given=given(exercise.reference, case) if failed.case else "")
    return _differing(exercise, function, seeds, values, shown) or CheckResult(exercise.name, "passed", exercise.title)


def _differing(
    exercise: Exercise, function: Function, seeds: tuple[int, ...], values: Sequence[Any], shown: int
) -> CheckResult | None:
    """The result for wrong values, or None if all values are right."""
    cases = _cases(exercise, seeds)[: len(values)]
    expected = [_known(exercise, exercise.reference, seeds, i) for i in range(len(cases))]

    def wrong(i: int, diagnosis: str, headline: str, hint: int = 1, note: str = "") -> CheckResult:
        at = place_of_difference(values[i], expected[i], exercise.tolerance)
        yours, right = both_shown(values[i], expected[i], at)
        right = "" if exercise.secret else right
        verdict = CheckResult(
            exercise.name, "wrong", headline, diagnosis, cases[i].words, yours, right, hint, note=note
        )
        return _unseen(verdict) if i >= shown > 0 else replace(verdict, given=given(exercise.reference, cases[i], at))

    for i, (value, right) in enumerate(zip(values, expected, strict=True)):
        if reason := misfit(value, right):
            of_a_shape = hasattr(value, "shape") and "of shape" in reason
            headline = f"{exercise.function} {reason}"
            if i >= shown > 0:  # a shape or a class name can reveal the arguments
                headline = f"{exercise.function} returns a value of the wrong type or shape"
            return wrong(i, "wrong-shape" if of_a_shape else "wrong-type", headline)
    differing = [i for i, case in enumerate(cases) if not is_right(exercise, values[i], expected[i], case)]
    if not differing:
        return None
    first = differing[0]
    compared = _AnswerComparison(exercise, seeds, values, differing)
    mistake = compared.named()
    if mistake is not None:
        return wrong(first, mistake.name, mistake.says, mistake.hint)
    if not all(_repeats(exercise, function, case, value) for case, value in zip(cases, values, strict=True)):
        return wrong(first, "own-randomness", OTHERWISE)
    likely = compared.resembled()
    if likely is not None:
        return wrong(
            first, "unknown", exercise.otherwise, likely.hint, f"this case looks like this mistake: {likely.says}"
        )
    return wrong(first, "unknown", exercise.otherwise)


NEEDED = 2
"""Cases that must match a mistake, and no other known mistake, before it is named."""


class _AnswerComparison:
    """Compares the values of an answer with those of every known mistake. differing: its wrong cases."""

    def __init__(self, exercise: Exercise, seeds: tuple[int, ...], values: Sequence[Any], differing: Sequence[int]):
        self._exercise, self._seeds, self._values, self._differing = exercise, seeds, values, differing
        self._needed = min(NEEDED, len(_cases(exercise, seeds)))  # an exercise may have one case only

    def named(self) -> Misconception | None:
        """The mistake that explains every value, and that enough cases distinguish from all others."""
        for mistake in self._exercise.misconceptions:
            if self._explains(mistake) and self._is_distinguishable(mistake):
                return mistake
        return None

    def resembled(self) -> Misconception | None:
        """The only mistake that explains the first wrong value and enough others. There may be a second mistake."""
        similar = [mistake for mistake in self._exercise.misconceptions if self._is_resembled(mistake)]
        return similar[0] if len({mistake.says for mistake in similar}) == 1 else None

    def _gives(self, mistake: Misconception, i: int) -> bool:
        """Whether the mistake and the answer return the same value in case i."""
        try:
            known = _known(self._exercise, mistake.wrong, self._seeds, i)
            return same(known, self._values[i], self._exercise.tolerance)
        except Exception:
            return False

    def _explains(self, mistake: Misconception) -> bool:
        """Whether this mistake returns all wrong values of the answer, and right values where the answer is right."""
        right = [i for i in range(len(self._values)) if i not in self._differing and not self._gives(mistake, i)]
        return all(self._gives(mistake, i) for i in self._differing) and _does_not_show(
            self._exercise, mistake, self._seeds, right
        )

    def _is_distinguishable(self, mistake: Misconception) -> bool:
        """Whether enough cases distinguish this mistake from right answers and from the other mistakes."""
        if len(self._differing) < self._needed:
            return False
        other_mistakes = [
            other_mistake for other_mistake in self._exercise.misconceptions if other_mistake.says != mistake.says
        ]
        given = [i for i in range(len(self._values)) if self._gives(mistake, i)]
        return all(
            sum(not self._gives(other_mistake, i) for i in given) >= self._needed for other_mistake in other_mistakes
        )

    def _is_resembled(self, mistake: Misconception) -> bool:
        """Whether the first wrong value, and enough others, come from this mistake and from no other."""
        telling = [i for i in self._differing if _tells_much(self._values[i]) and self._gives(mistake, i)]
        if self._differing[0] not in telling:
            return False
        other_mistakes = [
            other_mistake for other_mistake in self._exercise.misconceptions if other_mistake.says != mistake.says
        ]
        alone = [i for i in telling if not any(self._gives(other_mistake, i) for other_mistake in other_mistakes)]
        right = [i for i in range(len(self._values)) if i not in self._differing]
        return len(alone) >= self._needed and _does_not_show(self._exercise, mistake, self._seeds, right)


def _does_not_show(exercise: Exercise, mistake: Misconception, seeds: tuple[int, ...], cases: Iterable[int]) -> bool:
    """Whether this mistake returns the right values in all of these cases."""
    try:
        return all(
            is_right(
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
    """Whether one value suffices to recognize a mistake, as a tensor of numbers does, and True or False does not."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, (dict, float)) or (isinstance(value, (tuple, list)) and len(value) > 1)


OTHERWISE = (
    "Your function returns another value when it is called again. Use only its arguments, no randomness and no memory"
    " of your own (a list as default argument, a global variable?)"
)
HIDDEN = "your answer passes the public checks and fails in a hidden case"
UNSEEN = "a hidden case"


def _unseen(verdict: CheckResult) -> CheckResult:
    """The same result without the case and its values, for a hidden case."""
    note = "; ".join(part for part in (verdict.note, HIDDEN) if part)
    return replace(verdict, case=UNSEEN, yours="", expected="", given="", note=note)


def _without_its_words(verdict: CheckResult) -> CheckResult:
    """The same result without text that the answer chose. The message of an exception, its class name and even a line
    number can reveal the arguments of a hidden case, so only Python's own exceptions are named."""
    if verdict.diagnosis == "bad-request":
        return replace(verdict, headline="Your function calls chance with an invalid probability, or too often")
    if verdict.diagnosis != "crashed":
        return verdict
    name = re.match(r"\w*", verdict.headline)
    kind = getattr(builtins, name[0], None) if name is not None else None
    if isinstance(kind, type) and issubclass(kind, BaseException):
        return replace(verdict, headline=f"Your function raises {kind.__name__}")
    return replace(verdict, headline="Your function raises an exception of its own, or ends its process")


def _repeats(exercise: Exercise, function: Function, case: ExerciseCase, value: Any) -> bool:
    """Whether an answer returns this value again in a second call."""
    try:
        return repeats(observe(function, case, exercise.measure), value, exercise.tolerance)
    except Exception:
        return False


def _failed(
    exercise: Exercise, function: Function, error: BaseException, seeds: tuple[int, ...], i: int
) -> CheckResult:
    """The result for an answer that raised `error` in case i, after right values in all cases before."""
    case = _cases(exercise, seeds)[i]
    if isinstance(error, NotImplementedError) and clean(error) in ("", STUB):
        return CheckResult(exercise.name, "not attempted", f"{exercise.title}: not attempted yet")
    if isinstance(error, ChangedArguments):
        text = "Your function changes its arguments, which belong to the caller. Copy an argument before you change it"
        return CheckResult(exercise.name, "wrong", text, "changes-arguments", case.words)
    mistake = _fails_like(exercise, function, error, seeds, i)
    if mistake is not None:
        message = clean(error)
        return CheckResult(exercise.name, "wrong", mistake.says, mistake.name, case.words, message, "", mistake.hint)
    if isinstance(error, BadRequest):
        return CheckResult(exercise.name, "wrong", clean(error), "bad-request", case.words, hint=1)
    message = clean(error, 200)
    if isinstance(error, SubmissionFailed):
        return CheckResult(exercise.name, "crashed", message, "crashed", case.words)
    frames = traceback.extract_tb(error.__traceback__)
    at = f" (line {frames[-1].lineno} of {frames[-1].name})" if frames and frames[-1].filename != __file__ else ""
    kind = clean(type(error).__name__, 80)
    return CheckResult(
        exercise.name, "crashed", f"{kind}: {message}{at}" if message else f"{kind}{at}", "crashed", case.words
    )


def _fails_like(
    exercise: Exercise, function: Function, error: BaseException, seeds: tuple[int, ...], i: int
) -> Misconception | None:
    """The only known mistake that fails like this answer in case i and in enough later cases."""
    cases = _cases(exercise, seeds)
    needed = min(NEEDED, len(cases))
    alike = []
    for mistake in exercise.misconceptions:
        if not _fails_alike(exercise, mistake.wrong, cases[i], error):
            continue
        if not _does_not_show(exercise, mistake, seeds, range(i)):
            continue
        later = [case for case in cases[i + 1 :] if _error_of(exercise, mistake.wrong, case) is not None]
        if len(later) + 1 >= needed and all(_both_fail_alike(exercise, mistake, function, case) for case in later):
            alike.append(mistake)
    return alike[0] if len({mistake.says for mistake in alike}) == 1 else None


def _error_of(exercise: Exercise, function: Function, case: ExerciseCase) -> Exception | None:
    """The exception that a function raises in a case, or None."""
    try:
        observe(function, case, exercise.measure)
    except Exception as error:
        return error
    return None


def _both_fail_alike(exercise: Exercise, mistake: Misconception, function: Function, case: ExerciseCase) -> bool:
    error = _error_of(exercise, function, case)
    return error is not None and _fails_alike(exercise, mistake.wrong, case, error)


def _fails_alike(exercise: Exercise, function: Function, case: ExerciseCase, error: BaseException) -> bool:
    """Whether a wrong version fails with the same type of error, the same message and the same value."""
    message = clean(error) if isinstance(error, SubmissionFailed) else clean(describe_error(error))
    try:
        observe(function, case, exercise.measure)
    except BadRequest as other:
        if not isinstance(error, BadRequest):
            return False
        return str(other) == str(error) and same(other.value, error.value, exercise.tolerance)
    except Exception as other:
        if isinstance(error, BadRequest):
            return False
        if isinstance(other, ArithmeticError):  # the messages of integers and floats differ
            return message.startswith(type(other).__name__)
        return message.split(" (line ")[0] == clean(describe_error(other))
    return False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the block after this time, and again every second in case the block catches it.

    In the main thread of a Unix process, this uses a signal, which also ends a sleep. Elsewhere, the exception is
    raised when the next line of Python runs.
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
            if outer:  # restart the limit of an enclosing block
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
