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
    beside,
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
"""An answer may take so long over the cases of one seed. What the reference takes does not count."""
HIDDEN_SEEDS = (101, 102)
STUB = "your code here"
"""What the NotImplementedError of a stub says. PyTorch has some of its own."""


def allowed(seeds: Sequence[int]) -> float:
    """Seconds that an answer may take over the cases of these seeds."""
    return SECONDS * len(seeds)


def judge(
    exercise: Exercise, function: Any, seeds: Sequence[int] = (PUBLIC_SEED,), *, limited: bool = True
) -> CheckResult:
    """What becomes of this answer. seeds: of the cases; the public ones by default. Never raises what the answer does.

    The answer runs here, as long as it is `allowed`. limited=False: it limits its own time, as an answer in a sandbox
    does, by raising TooSlow.
    """
    public = tuple(seeds) == (PUBLIC_SEED,)
    if not callable(function):
        headline = f"{exercise.function} is {shape_of(function)}; takes a function"
        return CheckResult(exercise.name, "wrong", headline, "wrong-type", public=public)
    shown = len(exercise.cases(PUBLIC_SEED)) if seeds[0] == PUBLIC_SEED else 0
    try:
        timed = _Timed(function, allowed(seeds)) if limited else function
        verdict = _compared(exercise, timed, tuple(seeds), shown)
    except TooSlow:
        text = f"It did not come to an end within {allowed(seeds):.0f} seconds: look for a loop that never stops,"
        text += " or for work that is done again and again"
        verdict = CheckResult(exercise.name, "crashed", text, "endless")
    if verdict.passed:
        message = "public checks passed" if public else "all checks passed"
        verdict = replace(verdict, headline=f"{exercise.title}: {message}", note=reaches_for_the_package(function))
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
def _cases(exercise: Exercise, seeds: tuple[int, ...]) -> tuple[ExerciseCase, ...]:
    return tuple(case for seed in seeds for case in exercise.cases(seed))


@lru_cache(maxsize=16_384)
def _known(exercise: Exercise, function: Function, seeds: tuple[int, ...], i: int) -> Any:
    """What the reference or a wrong version gives in a case: computed once for all who are graded."""
    return observe(function, _cases(exercise, seeds)[i], exercise.measure)


def _compared(exercise: Exercise, function: Function, seeds: tuple[int, ...], shown: int) -> CheckResult:
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
            failed = _failed(exercise, function, error, seeds, i)
            if i >= shown > 0:
                return _unseen(_without_its_words(failed))
            return replace(failed, given=given(exercise.reference, case) if failed.case else "")
    return _differing(exercise, function, seeds, values, shown) or CheckResult(exercise.name, "passed", exercise.title)


def _differing(
    exercise: Exercise, function: Function, seeds: tuple[int, ...], values: Sequence[Any], shown: int
) -> CheckResult | None:
    """What is wrong with these values, or None."""
    cases = _cases(exercise, seeds)[: len(values)]
    expected = [_known(exercise, exercise.reference, seeds, i) for i in range(len(cases))]

    def wrong(i: int, diagnosis: str, headline: str, hint: int = 1, note: str = "") -> CheckResult:
        at = place_of_difference(values[i], expected[i], exercise.tolerance)
        yours, right = beside(values[i], expected[i], at)
        right = "" if exercise.secret else right
        verdict = CheckResult(
            exercise.name, "wrong", headline, diagnosis, cases[i].words, yours, right, hint, note=note
        )
        return _unseen(verdict) if i >= shown > 0 else replace(verdict, given=given(exercise.reference, cases[i], at))

    for i, (value, right) in enumerate(zip(values, expected, strict=True)):
        if reason := misfit(value, right):
            of_a_shape = hasattr(value, "shape") and "of shape" in reason
            headline = f"{exercise.function} {reason}"
            if i >= shown > 0:  # a shape or the name of a class can hold the arguments
                headline = f"{exercise.function} gives a value of another kind or shape than it should"
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
        return wrong(first, "own-chance", OTHERWISE)
    likely = compared.resembled()
    if likely is not None:
        return wrong(first, "unknown", exercise.otherwise, likely.hint, f"this case looks like: {likely.says}")
    return wrong(first, "unknown", exercise.otherwise)


NEEDED = 2
"""Cases that have to agree with a mistake, at values that no other known mistake gives, before it is named."""


class _AnswerComparison:
    """The values of an answer compared with those of every known mistake. differing: the cases in which it is wrong."""

    def __init__(self, exercise: Exercise, seeds: tuple[int, ...], values: Sequence[Any], differing: Sequence[int]):
        self._exercise, self._seeds, self._values, self._differing = exercise, seeds, values, differing
        self._needed = min(NEEDED, len(_cases(exercise, seeds)))  # an exercise may have one case only

    def named(self) -> Misconception | None:
        """The mistake that explains every value, and that enough cases tell from each of the others."""
        for mistake in self._exercise.misconceptions:
            if self._explains(mistake) and self._is_distinguishable(mistake):
                return mistake
        return None

    def resembled(self) -> Misconception | None:
        """The one mistake that gives the first wrong value, and enough others; perhaps there are two at once."""
        found = [mistake for mistake in self._exercise.misconceptions if self._is_resembled(mistake)]
        return found[0] if len({mistake.says for mistake in found}) == 1 else None

    def _gives(self, mistake: Misconception, i: int) -> bool:
        """Whether the mistake gives the value of the answer in case i."""
        try:
            known = _known(self._exercise, mistake.wrong, self._seeds, i)
            return same(known, self._values[i], self._exercise.tolerance)
        except Exception:
            return False

    def _explains(self, mistake: Misconception) -> bool:
        """Whether who makes this mistake gives all of the values; where the answer is right, any other right one."""
        right = [i for i in range(len(self._values)) if i not in self._differing and not self._gives(mistake, i)]
        return all(self._gives(mistake, i) for i in self._differing) and _does_not_show(
            self._exercise, mistake, self._seeds, right
        )

    def _is_distinguishable(self, mistake: Misconception) -> bool:
        """Whether enough cases tell a mistake that explains the values from a right answer and from the others."""
        if len(self._differing) < self._needed:
            return False
        others = [other for other in self._exercise.misconceptions if other.says != mistake.says]
        given = [i for i in range(len(self._values)) if self._gives(mistake, i)]
        return all(sum(not self._gives(other, i) for i in given) >= self._needed for other in others)

    def _is_resembled(self, mistake: Misconception) -> bool:
        """Whether the first wrong value and enough wrong ones are this mistake's and no other's."""
        telling = [i for i in self._differing if _tells_much(self._values[i]) and self._gives(mistake, i)]
        if self._differing[0] not in telling:
            return False
        others = [other for other in self._exercise.misconceptions if other.says != mistake.says]
        alone = [i for i in telling if not any(self._gives(other, i) for other in others)]
        right = [i for i in range(len(self._values)) if i not in self._differing]
        return len(alone) >= self._needed and _does_not_show(self._exercise, mistake, self._seeds, right)


def _does_not_show(exercise: Exercise, mistake: Misconception, seeds: tuple[int, ...], cases: Iterable[int]) -> bool:
    """Whether who makes this mistake would be right in all of these cases."""
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
    """Whether one value is enough to recognize a mistake by: a tensor of numbers or several things, no yes or no."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, (dict, float)) or (isinstance(value, (tuple, list)) and len(value) > 1)


OTHERWISE = (
    "It gives another value when asked again: use what is handed in, no chance and no memory of its own (a list as"
    " default argument, a global?)"
)
HIDDEN = "your answer passes the public checks; this case is one of those that you do not see in the notebook"
UNSEEN = "a case that you are not shown"


def _unseen(verdict: CheckResult) -> CheckResult:
    """The same in a hidden case: neither the case nor what is due in it, for they would be no secret any more."""
    note = "; ".join(part for part in (verdict.note, HIDDEN) if part)
    return replace(verdict, case=UNSEEN, yours="", expected="", given="", note=note)


def _without_its_words(verdict: CheckResult) -> CheckResult:
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


def _repeats(exercise: Exercise, function: Function, case: ExerciseCase, value: Any) -> bool:
    """Whether an answer gives this value again when it is asked again."""
    try:
        return repeats(observe(function, case, exercise.measure), value, exercise.tolerance)
    except Exception:
        return False


def _failed(
    exercise: Exercise, function: Function, error: BaseException, seeds: tuple[int, ...], i: int
) -> CheckResult:
    """In case i; in all before it the values are right."""
    case = _cases(exercise, seeds)[i]
    if isinstance(error, NotImplementedError) and clean(error) in ("", STUB):
        return CheckResult(exercise.name, "not attempted", f"{exercise.title}: not attempted yet")
    if isinstance(error, ChangedArguments):
        text = "It writes into its arguments, which belong to the caller: copy what you change"
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
    """The known mistake that fails as this answer does in case i and wherever it fails later: in enough cases, and
    as no other mistake does."""
    cases = _cases(exercise, seeds)
    needed = min(NEEDED, len(cases))
    found = []
    for mistake in exercise.misconceptions:
        if not _fails_alike(exercise, mistake.wrong, cases[i], error):
            continue
        if not _does_not_show(exercise, mistake, seeds, range(i)):
            continue
        later = [case for case in cases[i + 1 :] if _error_of(exercise, mistake.wrong, case) is not None]
        if len(later) + 1 >= needed and all(_both_fail_alike(exercise, mistake, function, case) for case in later):
            found.append(mistake)
    return found[0] if len({mistake.says for mistake in found}) == 1 else None


def _error_of(exercise: Exercise, function: Function, case: ExerciseCase) -> Exception | None:
    """What a function raises in a case."""
    try:
        observe(function, case, exercise.measure)
    except Exception as error:
        return error
    return None


def _both_fail_alike(exercise: Exercise, mistake: Misconception, function: Function, case: ExerciseCase) -> bool:
    error = _error_of(exercise, function, case)
    return error is not None and _fails_alike(exercise, mistake.wrong, case, error)


def _fails_alike(exercise: Exercise, function: Function, case: ExerciseCase, error: BaseException) -> bool:
    """Whether a wrong version fails with the same kind of error, in the same words, and having given the same."""
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
        if isinstance(other, ArithmeticError):  # integers and floats have other words for it
            return message.startswith(type(other).__name__)
        return message.split(" (line ")[0] == clean(describe_error(other))
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
