"""Wrong answers of learners: the diagnosis of each, and that none passes with any seed."""

from typing import Any

import pytest
from wrong import DECIDES_BY, WRITES, WRONG, lengths_as_text, yield_as_complex, yield_with_a_step_more

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import Exercise, Misconception
from specdec_lab.teaching.exercises.judging import HIDDEN_SEEDS, PUBLIC_SEED, judge

HIDDEN = pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (7, 1234))])
"""Hidden seeds that an instructor could choose."""
SEEDS = pytest.mark.parametrize(
    "seeds",
    [
        pytest.param((PUBLIC_SEED,), id="notebook"),
        pytest.param((PUBLIC_SEED, *HIDDEN_SEEDS), id="graded", marks=pytest.mark.slow),
    ],
)


def made_of(source: str, name: str) -> Any:
    """The function that a cell defines."""
    space: dict[str, Any] = {}
    exec(source, space)
    return space[name]


@pytest.mark.parametrize("name", WRITES)
def test_writing_into_the_arguments_is_reported_in_the_notebook(name: str) -> None:
    verdict = judge(EXERCISES[name], made_of(WRITES[name], EXERCISES[name].function))
    assert (verdict.outcome, verdict.diagnosis) == ("wrong", "changes-arguments"), verdict


@SEEDS
@pytest.mark.parametrize(("name", "due", "answer"), WRONG, ids=[f"{n}-{f.__name__}" for n, _, f in WRONG])
def test_each_wrong_answer_gets_its_diagnosis(name: str, due: str, answer: Any, seeds: tuple[int, ...]) -> None:
    verdict = judge(EXERCISES[name], answer, seeds)
    assert (verdict.outcome == "passed", verdict.diagnosis) == (False, due), verdict


@HIDDEN
@pytest.mark.parametrize(("name", "due", "answer"), WRONG, ids=[f"{n}-{f.__name__}" for n, _, f in WRONG])
def test_hidden_cases_alone_refute_each_wrong_answer(name: str, due: str, answer: Any, seed: int) -> None:
    assert not judge(EXERCISES[name], answer, (seed,)).passed


KNOWN = [(exercise, mistake) for exercise in EXERCISES.values() for mistake in exercise.misconceptions]


@HIDDEN
@pytest.mark.parametrize(("exercise", "mistake"), KNOWN, ids=[f"{e.name}-{m.name}" for e, m in KNOWN])
def test_hidden_cases_alone_refute_each_known_mistake(exercise: Exercise, mistake: Misconception, seed: int) -> None:
    assert not judge(exercise, mistake.wrong, (seed,)).passed


def test_there_are_six_wrong_answers_for_each_exercise() -> None:
    assert {name for name in EXERCISES if sum(name == n for n, *_ in WRONG) < 6} == set()


def test_a_mistake_that_one_case_cannot_tell_from_another_is_not_even_hinted_at() -> None:
    """1 + k·c + v equals k·c + (k + 1)·v in the first case only, where k = 1 and v = 1."""
    verdict = judge(EXERCISES["speedup"], yield_with_a_step_more)
    assert (verdict.diagnosis, verdict.note, verdict.hint) == ("unknown", "", 1)


@pytest.mark.parametrize("answer", [answer for due, answer in DECIDES_BY if due == "unknown"], ids=lambda f: f.__name__)
def test_a_decision_is_not_explained_by_a_mistake_that_it_only_resembles(answer: Any) -> None:
    verdict = judge(EXERCISES["decide"], answer)
    assert verdict.headline == EXERCISES["decide"].otherwise


def test_values_of_another_kind_are_named_by_their_kind() -> None:
    assert judge(EXERCISES["rewind"], lengths_as_text).headline == (
        "lengths_after returns a tuple of 2 with a str in it; expected a tuple of 2"
    )
    assert judge(EXERCISES["speedup"], yield_as_complex).headline == "speedup returns a complex; expected a number"


def test_zeros_and_ones_are_distinguished_from_true_and_false() -> None:
    answer = next(answer for name, _, answer in WRONG if answer.__name__ == "accept_zeros_and_ones")
    assert judge(EXERCISES["accept"], answer).headline == (
        "accepts returns numbers (int64); expected True or False for each token"
    )
