"""Wrong answers of learners, judged: what each has to be told."""

from typing import Any

import pytest
from wrong import WRITES

from specdec_ref.teaching.checks.catalogue import EXERCISES
from specdec_ref.teaching.checks.judging import judge


def made_of(source: str, name: str) -> Any:
    """The function that a cell defines."""
    space: dict[str, Any] = {}
    exec(source, space)
    return space[name]


@pytest.mark.parametrize("name", WRITES)
def test_writing_into_the_arguments_is_told_in_the_notebook(name: str) -> None:
    verdict = judge(EXERCISES[name], made_of(WRITES[name], EXERCISES[name].function))
    assert (verdict.outcome, verdict.diagnosis) == ("wrong", "changes-arguments"), verdict
