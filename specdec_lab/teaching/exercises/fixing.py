"""Exercise on fixing a round with three bugs, checked by the distribution of its text, however the bugs are fixed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Function, Misconception, called, same
from specdec_lab.teaching.exercises.outcomes import BadRequest, distribution
from specdec_lab.teaching.exercises.rule import residual


def broken_round(target: Tensor, draft: Tensor, last: int, k: int, chance: Any) -> list[int]:
    """Tokens of one round after `last`. Row t of target and draft, [V, V]: the distribution of the token after t."""
    drafted: list[int] = []
    q: list[Tensor] = []
    for _ in range(k):
        row = draft[drafted[-1] if drafted else last]
        drafted.append(int(row.argmax()))  # exhibit A
        q.append(row)
    p = target[[last, *drafted]]  # k + 1 rows
    keep = [chance.accept(min(1.0, float(p[i, token] / q[i][token]))) for i, token in enumerate(drafted)]
    accepted = sum(keep)  # exhibit C
    if accepted < k:
        return [*drafted[:accepted], chance.draw(p[accepted])]  # exhibit B
    return [*drafted, chance.draw(p[k])]


def fixed_round(target: Tensor, draft: Tensor, last: int, k: int, chance: Any) -> list[int]:
    """Tokens of one round after `last`, without the three bugs."""
    drafted: list[int] = []
    for _ in range(k):
        drafted.append(chance.draw(draft[drafted[-1] if drafted else last]))  # A: from q itself
    rows = [last, *drafted]
    for i, token in enumerate(drafted):
        p, q = target[rows[i]], draft[rows[i]]
        if not chance.accept(min(1.0, float(p[token] / q[token]))):
            rest = (p - q).clamp(min=0)  # B: from the residual
            return [*drafted[:i], chance.draw(rest / rest.sum())]  # C: no token after a rejection
    return [*drafted, chance.draw(target[rows[k]])]


def _first(keep: list[bool]) -> int:
    return [*keep, False].index(False)


def _left(p: Tensor, q: Tensor) -> Tensor:
    return residual(p, q)


def _round(
    target: Tensor,
    draft: Tensor,
    last: int,
    k: int,
    chance: Any,
    *,
    greedy: bool = False,
    left: Callable[[Tensor, Tensor], Tensor] = _left,
    count: Callable[[list[bool]], int] = _first,
    bonus: bool = True,
) -> list[int]:
    drafted: list[int] = []
    for _ in range(k):
        row = draft[([last, *drafted])[-1]]
        drafted.append(int(row.argmax()) if greedy else chance.draw(row))
    p, q = target[[last, *drafted]], draft[[last, *drafted[:-1]]]
    keep = [chance.accept(min(1.0, float(p[i, token] / q[i, token]))) for i, token in enumerate(drafted)]
    accepted = count(keep)
    if accepted < k:
        return [*drafted[:accepted], chance.draw(left(p[accepted], q[accepted]))]
    return [*drafted, chance.draw(p[k])] if bonus else drafted


def cases(seed: int) -> list[ExerciseCase]:
    """Rounds with one and with two drafted tokens."""
    made = []
    for i, (k, tokens) in enumerate(((1, 3), (2, 2), (2, 3), (1, 2), (2, 2))):
        noise = torch.Generator().manual_seed(seed + i)
        tables = (1.5 * torch.randn(2, tokens, tokens, generator=noise, dtype=torch.float64)).softmax(-1)
        made.append(ExerciseCase((tables[0], tables[1], i % 2, k), f"k = {k}, a vocabulary of {tokens}", True, False))
    return made


def next_tokens(function: Function, case: ExerciseCase) -> dict[tuple[int, ...], float]:
    """The exact distribution of the next k + 1 tokens. After a shorter round, the target adds the missing ones."""
    return _continued(_rounds(function, case), case)


def _rounds(function: Function, case: ExerciseCase) -> dict[tuple[int, ...], float]:
    """The exact distribution of the tokens of one round. Raises BadRequest for a round of a wrong length."""
    k = case.arguments[3]
    outcomes = distribution(lambda chance: called(function, *case.arguments, chance))
    for emitted in outcomes:
        if not isinstance(emitted, tuple) or not 1 <= len(emitted) <= k + 1:
            raise BadRequest(f"a round with k = {k} returns {emitted!r:.60}; expected a list of 1 to {k + 1} tokens")
    if max(map(len, outcomes)) <= k:
        message = f"no round emits {k + 1} tokens: if all {k} drafted tokens are accepted, the target gives one more"
        raise BadRequest(message, outcomes)
    return outcomes


def _drafted(function: Function, case: ExerciseCase) -> dict[tuple[int, ...], float]:
    """The distribution of the next tokens. Raises BadRequest if the rounds do not depend on the draft."""
    target, draft, *rest = case.arguments
    rounds = _rounds(function, case)
    text = _continued(rounds, case)
    swapped = replace(case, arguments=(target, draft.roll(1, -1), *rest))
    if same(text, next_tokens(fixed_round, case), 1e-4) and same(rounds, _rounds(function, swapped), 1e-6):
        raise BadRequest("your rounds do not use the draft: with a different draft, their results are the same")
    return text


def _continued(rounds: dict[tuple[int, ...], float], case: ExerciseCase) -> dict[tuple[int, ...], float]:
    text: dict[tuple[int, ...], float] = {}
    for emitted, probability in rounds.items():
        _extend(text, case.arguments[0], emitted, case.arguments[3] + 1, probability)
    return text


def _extend(
    text: dict[tuple[int, ...], float], target: Tensor, emitted: tuple[int, ...], n: int, probability: float
) -> None:
    if len(emitted) == n:
        text[emitted] = text.get(emitted, 0.0) + probability
        return
    for token, p in enumerate(target[emitted[-1]].tolist()):
        _extend(text, target, (*emitted, token), n, probability * p)


def _with(**mistakes: Any) -> Function:
    return lambda *arguments: _round(*arguments, **mistakes)


def _target(p: Tensor, q: Tensor) -> Tensor:
    return p


def _without_a_draft(target: Tensor, draft: Tensor, last: int, k: int, chance: Any) -> list[int]:
    text = [last]
    for _ in range(k + 1):
        text.append(chance.draw(target[text[-1]]))
    return text[1:]


FIX = Exercise(
    "fix",
    "Fix the bugs",
    "fixed_round",
    15,
    3,
    (
        "Which line belongs to each exhibit, and what should it compute instead? Nothing else in the "
        "broken round is wrong.",
        "A: the rule must use the q that the token was sampled from. Either sample the token from `row`, "
        "or report a q that is a point mass (one-hot) on the token.",
        "C: only the tokens before the first rejection are accepted. How many entries of `keep` come "
        "before its first False?",
        "B: after a rejection at position i, sample from max(0, p[i] − q[i]), divided by its sum.",
    ),
    fixed_round,
    (
        Misconception(
            "nothing-fixed", "All three exhibits are still in your round. Change one line for each", 1, broken_round
        ),
        Misconception(
            "a-left",
            "Exhibit A is still in your round: it drafts the most likely token, but treats it as sampled from q",
            2,
            _with(greedy=True),
        ),
        Misconception(
            "b-left",
            "Exhibit B is still in your round: after a rejection, it samples from the target, not the residual",
            4,
            _with(left=_target),
        ),
        Misconception(
            "c-left",
            "Exhibit C is still in your round: it counts tokens after a rejection as accepted",
            3,
            _with(count=sum),
        ),
        Misconception(
            "b-and-c-left",
            "You fixed exhibit A. Exhibits B and C are still in your round",
            3,
            _with(left=_target, count=sum),
        ),
        Misconception(
            "a-and-c-left",
            "You fixed exhibit B. Exhibits A and C are still in your round",
            2,
            _with(greedy=True, count=sum),
        ),
        Misconception(
            "a-and-b-left",
            "You fixed exhibit C. Exhibits A and B are still in your round",
            2,
            _with(greedy=True, left=_target),
        ),
        Misconception(
            "residual-of-q",
            "After a rejection, you sample from q − p, the part by which the draft exceeds the target. Use p − q",
            4,
            _with(left=lambda p, q: residual(q, p)),
        ),
        Misconception(
            "no-bonus",
            "Your rounds have no bonus token. If all k drafted tokens are accepted, the target gives one more",
            1,
            _with(bonus=False),
        ),
        Misconception(
            "no-speculation",
            "You sample every token from the target. This is correct but no faster. Draft k tokens, then verify them",
            1,
            _without_a_draft,
        ),
    ),
    cases,
    measure=_drafted,
)
