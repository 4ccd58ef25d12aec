"""Judge one answer: run it on every case, find the smallest that differs, and the misconception that explains it."""

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from specdec_ref.teaching.checks.exercise import (
    Case,
    ChangedArguments,
    Exercise,
    Function,
    NotAttempted,
    Verdict,
    fits,
    observe,
    same,
    shape_of,
    shown,
)
from specdec_ref.teaching.checks.outcomes import BadRequest

SECONDS = 20.0
"""One check may take so long in a notebook, where it can be interrupted at all."""
PUBLIC_SEED, HIDDEN_SEEDS = 0, (101, 102)


class TooSlow(Exception):
    """It did not come to an end."""


def judge(exercise: Exercise, function: Any, seeds: Sequence[int] = (PUBLIC_SEED,)) -> Verdict:
    """What becomes of this answer. seeds: of the cases; the public ones by default. Never raises what the answer does.

    The answer runs here: for one of a stranger's see `sandbox`.
    """
    public = tuple(seeds) == (PUBLIC_SEED,)
    if not callable(function):
        headline = f"{exercise.function} is {shape_of(function)}; takes a function"
        return Verdict(exercise.name, "wrong", headline, "wrong-type", public=public)
    cases = [case for seed in seeds for case in exercise.cases(seed)]
    try:
        with _time_limit(SECONDS):
            return _compared(exercise, function, cases, public)
    except TooSlow:
        text = f"It did not come to an end within {SECONDS:.0f} seconds: look for a loop that never stops"
        return Verdict(exercise.name, "crashed", text, "endless", public=public)


def _compared(exercise: Exercise, function: Function, cases: Sequence[Case], public: bool) -> Verdict:
    values: list[Any] = []
    for case in cases:
        try:
            values.append(observe(function, case, exercise.measure))
        except TooSlow:
            raise
        except BaseException as error:  # SystemExit and KeyboardInterrupt of the answer, too
            return _failed(exercise, error, case, public)
    expected = [observe(exercise.reference, case, exercise.measure) for case in cases]

    def wrong(i: int, diagnosis: str, headline: str, hint: int = 1) -> Verdict:
        return Verdict(
            exercise.name, "wrong", headline, diagnosis, _words(cases[i]), shown(values[i]), shown(expected[i]), hint,
            public,
        )  # fmt: skip

    for i, (value, right) in enumerate(zip(values, expected, strict=True)):
        if not fits(value, right):
            headline = f"{exercise.function} gives {shape_of(value)}; takes {shape_of(right)}"
            return wrong(i, "wrong-shape" if hasattr(value, "shape") else "wrong-type", headline)
    agrees = exercise.agrees or (lambda value, right, _: same(value, right, exercise.tolerance))
    differing = [i for i, case in enumerate(cases) if not agrees(values[i], expected[i], case)]
    if not differing:
        said = "public checks passed" if public else "all checks passed"
        return Verdict(exercise.name, "passed", f"{exercise.title}: {said}", public=public)
    for mistake in exercise.misconceptions:
        if all(_gives(exercise, mistake.wrong, case, value) for case, value in zip(cases, values, strict=True)):
            return wrong(differing[0], mistake.name, mistake.says, mistake.hint)
    first = differing[0]
    if isinstance(values[first], (torch.Tensor, dict)):  # two mistakes at once: name the one that shows first
        for mistake in exercise.misconceptions:
            if _gives(exercise, mistake.wrong, cases[first], values[first]):
                return wrong(first, mistake.name, mistake.says, mistake.hint)
    return wrong(first, "unknown", "Some values differ from what they should be; here is the smallest case")


def _gives(exercise: Exercise, function: Function, case: Case, value: Any) -> bool:
    """Whether a wrong version gives this value."""
    try:
        return same(observe(function, case, exercise.measure), value, exercise.tolerance)
    except Exception:
        return False


def _failed(exercise: Exercise, error: BaseException, case: Case, public: bool) -> Verdict:
    if isinstance(error, (NotImplementedError, NotAttempted)):
        return Verdict(exercise.name, "not attempted", f"{exercise.title}: not attempted yet", public=public)
    if isinstance(error, ChangedArguments):
        text = "It writes into its arguments, which belong to the caller: copy what you change"
        return Verdict(exercise.name, "wrong", text, "changes-arguments", _words(case), public=public)
    if isinstance(error, BadRequest):
        for mistake in exercise.misconceptions:  # a wrong version that asks for the impossible in the same words
            if _fails_alike(mistake.wrong, case, error):
                return Verdict(
                    exercise.name, "wrong", mistake.says, mistake.name, _words(case), str(error), hint=mistake.hint,
                    public=public,
                )  # fmt: skip
        return Verdict(exercise.name, "wrong", str(error), "bad-request", _words(case), hint=1, public=public)
    frames = traceback.extract_tb(error.__traceback__)
    at = f", line {frames[-1].lineno} of {frames[-1].name}" if len(frames) > 3 else ""
    said = " ".join(str(error).split())[:200]
    text = f"{type(error).__name__}: {said}{at}" if said else f"{type(error).__name__}{at}"
    return Verdict(exercise.name, "crashed", text, "crashed", _words(case), public=public)


def _fails_alike(function: Function, case: Case, error: BadRequest) -> bool:
    try:
        observe(function, case)
    except BadRequest as other:
        return str(other) == str(error)
    except Exception:
        return False
    return False


def _words(case: Case) -> str:
    return case.words or ", ".join(shown(argument) for argument in case.arguments)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow inside after so long, where a signal can do that: in the main thread, not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlow

    old: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
