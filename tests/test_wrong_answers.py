"""Wrong answers of learners, judged: what each has to be told."""

from typing import Any

import pytest
from wrong import WRITES, WRONG

from specdec_ref.teaching.checks.catalogue import EXERCISES
from specdec_ref.teaching.checks.judging import HIDDEN_SEEDS, PUBLIC_SEED, judge


def made_of(source: str, name: str) -> Any:
    """The function that a cell defines."""
    space: dict[str, Any] = {}
    exec(source, space)
    return space[name]


@pytest.mark.parametrize("name", WRITES)
def test_writing_into_the_arguments_is_told_in_the_notebook(name: str) -> None:
    verdict = judge(EXERCISES[name], made_of(WRITES[name], EXERCISES[name].function))
    assert (verdict.outcome, verdict.diagnosis) == ("wrong", "changes-arguments"), verdict


@pytest.mark.parametrize("seeds", [(PUBLIC_SEED,), (PUBLIC_SEED, *HIDDEN_SEEDS)], ids=["notebook", "graded"])
@pytest.mark.parametrize(("name", "due", "answer"), WRONG, ids=[f"{n}-{f.__name__}" for n, _, f in WRONG])
def test_each_wrong_answer_is_told_what_is_wrong_with_it(
    name: str, due: str, answer: Any, seeds: tuple[int, ...]
) -> None:
    verdict = judge(EXERCISES[name], answer, seeds)
    assert (verdict.outcome == "passed", verdict.diagnosis) == (False, due), verdict


def test_there_are_six_wrong_answers_for_each_exercise() -> None:
    assert {name for name in EXERCISES if sum(name == n for n, *_ in WRONG) < 6} == set()
