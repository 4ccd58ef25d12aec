"""Hidden cases that distinguish every known mistake from a right answer, for any seed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Function, is_right, misfit, observe
from specdec_ref.errors import SpecdecError

PUBLIC_SEED = 0
ATTEMPTS, STEP = 50, 1_000_003
"""Seeds to try for one hidden seed, and the difference between them."""


def with_telling_cases(exercise: Exercise) -> Exercise:
    """The same exercise, with hidden cases in which every known mistake fails. Public cases do not change."""
    return replace(exercise, cases=_telling(exercise))


def _telling(exercise: Exercise) -> Callable[[int], Sequence[ExerciseCase]]:
    @lru_cache(maxsize=64)
    def cases(seed: int) -> Sequence[ExerciseCase]:
        """The cases of a seed, or of the first later seed in which every mistake fails. Raises SpecdecError."""
        if seed == PUBLIC_SEED:
            return exercise.cases(seed)
        for attempt in range(ATTEMPTS):
            sampled = exercise.cases(seed + attempt * STEP)
            missed = mistakes_that_pass(exercise, sampled)
            if not missed:
                return sampled
        raise SpecdecError(f"{exercise.name}, seed={seed}: no cases were found in which {', '.join(missed)} is wrong")

    return cases


def mistakes_that_pass(exercise: Exercise, cases: Sequence[ExerciseCase]) -> list[str]:
    """Names of the mistakes that return right values in all of these cases."""
    expected = [observe(exercise.reference, case, exercise.measure) for case in cases]
    return [
        mistake.name
        for mistake in exercise.misconceptions
        if all(_passes(exercise, mistake.wrong, case, right) for case, right in zip(cases, expected, strict=True))
    ]


def _passes(exercise: Exercise, function: Function, case: ExerciseCase, right: Any) -> bool:
    try:
        value = observe(function, case, exercise.measure)
    except Exception:
        return False
    return not misfit(value, right) and is_right(exercise, value, right, case)
