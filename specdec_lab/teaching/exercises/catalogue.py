"""All exercises, in the order of the course."""

from specdec_lab.teaching.exercises import (
    beyond_one,
    choosing,
    configuring,
    deciding,
    deployment,
    fixing,
    judgement,
    loop,
    measuring,
    memory,
    rewinding,
    rule,
)
from specdec_lab.teaching.exercises.exercise import Exercise
from specdec_lab.teaching.exercises.hidden import with_telling_cases
from specdec_ref.errors import SpecdecError

EXERCISES: dict[str, Exercise] = {
    exercise.name: with_telling_cases(exercise)
    for exercise in (
        rule.ACCEPT,
        rule.RESIDUAL,
        rule.SPEEDUP,
        rewinding.REWIND,
        loop.STEP,
        judgement.FIND_BUG,
        fixing.FIX,
        judgement.EQUIVALENCE,
        loop.DECODE,
        measuring.SPEEDUP_OF,
        configuring.VLLM,
        measuring.ACCEPTANCE,
        choosing.BEST_DRAFT,
        deployment.ADAPTIVE,
        memory.MEMORY,
        deciding.DECIDE,
        beyond_one.BLOCK,
        beyond_one.CANDIDATES,
        beyond_one.LOSSLESS_OR_NOT,
    )
}


def exercise_named(name: object) -> Exercise:
    """The exercise of this name. Raises SpecdecError if there is none."""
    if not isinstance(name, str) or name not in EXERCISES:
        raise SpecdecError(f"exercise={name!r:.80}: takes one of {', '.join(EXERCISES)}")
    return EXERCISES[name]
