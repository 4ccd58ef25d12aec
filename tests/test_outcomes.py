"""Chance as it is handed to an answer: it takes probabilities only, and no answer can ask too much of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import observe
from specdec_lab.teaching.exercises.judging import HIDDEN_SEEDS, PUBLIC_SEED, judge
from specdec_lab.teaching.exercises.outcomes import (
    MOST_DECISIONS,
    MOST_IN_ONE_RUN,
    MOST_OUTCOMES,
    MOST_TOKENS,
    BadRequest,
    Chance,
    distribution,
)

WITH_CHANCE = ("step", "fix", "decode")


def test_every_way_is_played_once_and_each_as_likely_as_it_is() -> None:
    played: list[tuple[Any, ...]] = []

    def tree(chance: Chance) -> list[int]:
        path = [chance.draw([0.5, 0.0, 0.25, 0.25])]
        if path[0] == 2:
            path.append(int(chance.accept(0.1)))
        played.append(tuple(path))
        return path

    found = distribution(tree)
    assert sorted(played) == [(0,), (2, 0), (2, 1), (3,)]
    assert found == pytest.approx({(0,): 0.5, (2, 1): 0.025, (2, 0): 0.225, (3,): 0.25})


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        (lambda c: c.draw(None), "chance.draw(None): takes probabilities; did a function return nothing?"),
        (lambda c: c.draw("p"), "chance.draw('p'): takes probabilities"),
        (lambda c: c.draw([[0.5], [0.25, 0.25]]), "chance.draw([[0.5], [0.25, 0.25]]): takes probabilities"),
        (lambda c: c.draw(10**400), "chance.draw(1000000000"),
        (lambda c: c.draw([0.5, float("nan")]), "takes probabilities"),
        (lambda c: c.draw([]), "takes probabilities"),
        (lambda c: c.draw([1e-6] * 1_000_000), "1,000,000 probabilities; takes one for each token of the vocabulary"),
        (
            lambda c: c.accept(None),
            "chance.accept(None): takes a probability, 0 … 1; did a function return nothing?",
        ),
        (lambda c: c.accept(torch.tensor([0.5, 0.5])), "takes a probability, 0 … 1"),
        (lambda c: c.accept(10**400), "takes a probability, 0 … 1"),
    ],
)
def test_a_value_that_is_not_a_probability_raises_our_own_error(asks: Callable[[Chance], Any], said: str) -> None:
    with pytest.raises(BadRequest) as raised:
        distribution(lambda chance: [asks(chance)])
    assert said in str(raised.value)
    headline = judge(EXERCISES["step"], lambda p, q, drafted, chance: [asks(chance)]).headline
    assert said in headline


@pytest.mark.parametrize("name", WITH_CHANCE)
def test_an_answer_that_never_stops_asking_is_reported(name: str) -> None:
    for asks in (lambda c: c.accept(1.0), lambda c: c.accept(0.5) or True, lambda c: c.draw([0.5, 0.5]) + 1):

        def answer(*arguments: Any, asks: Callable[[Chance], Any] = asks) -> list[int]:
            while asks(arguments[-1]):
                pass
            return []

        verdict = judge(EXERCISES[name], answer)
        assert verdict.diagnosis == "bad-request"
        assert verdict.headline == ("more than 1,000 random decisions in one run: look for a loop that never stops")


@pytest.mark.parametrize(("draws", "plays"), [(3, MOST_OUTCOMES), (500, MOST_DECISIONS // 500)])
def test_what_has_too_many_outcomes_or_decisions_ends(draws: int, plays: int) -> None:
    played: list[int] = []

    def wide(chance: Chance) -> list[int]:
        played.append(1)
        return [chance.draw([1 / 100] * 100) for _ in range(draws)]

    with pytest.raises(BadRequest, match="too many random decisions: over 20,000 outcomes or over 100,000"):
        distribution(wide)
    assert len(played) == plays + 1


def test_an_answer_whose_questions_change_from_run_to_run_is_reported() -> None:
    asked: list[int] = []

    def forgetful(chance: Chance) -> list[int]:
        asked.append(1)
        return [chance.draw([1.0] if len(asked) % 2 == 0 else [0.5, 0.5])]

    with pytest.raises(BadRequest, match="no randomness and no memory of your own"):
        distribution(forgetful)


@pytest.mark.parametrize("name", WITH_CHANCE)
def test_exercises_need_far_less_than_the_limits(name: str) -> None:
    exercise = EXERCISES[name]
    plays, decisions, asked, tokens = 0, 0, 0, 0

    def watched(*arguments: Any) -> Any:
        nonlocal plays, decisions, asked, tokens
        value = exercise.reference(*arguments)
        taken = arguments[-1].taken
        plays, decisions, asked = plays + 1, decisions + len(taken), max(asked, len(taken))
        tokens = max(tokens, *(len(weights) for _, weights in taken))
        return value

    for seed in (PUBLIC_SEED, *HIDDEN_SEEDS):
        for case in exercise.cases(seed):
            plays, decisions = 0, 0
            observe(watched, case, exercise.measure)
            assert plays < MOST_OUTCOMES / 20
            assert decisions < MOST_DECISIONS / 20
    assert asked < MOST_IN_ONE_RUN / 20
    assert tokens < MOST_TOKENS / 20
