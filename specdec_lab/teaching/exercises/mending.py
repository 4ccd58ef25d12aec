"""Mend a round in which three exhibits of the museum sit: judged by the text that comes of it, however it is mended."""

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


def mended_round(target: Tensor, draft: Tensor, last: int, k: int, chance: Any) -> list[int]:
    """Tokens of one round after `last`, mended."""
    drafted: list[int] = []
    for _ in range(k):
        drafted.append(chance.draw(draft[drafted[-1] if drafted else last]))  # A: from q itself
    rows = [last, *drafted]
    for i, token in enumerate(drafted):
        p, q = target[rows[i]], draft[rows[i]]
        if not chance.accept(min(1.0, float(p[token] / q[token]))):
            rest = (p - q).clamp(min=0)  # B: what is left of p
            return [*drafted[:i], chance.draw(rest / rest.sum())]  # C: nothing behind a rejection
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
    """One drafted token, then two."""
    made = []
    for i, (k, tokens) in enumerate(((1, 3), (2, 2), (2, 3), (1, 2), (2, 2))):
        noise = torch.Generator().manual_seed(seed + i)
        tables = (1.5 * torch.randn(2, tokens, tokens, generator=noise, dtype=torch.float64)).softmax(-1)
        made.append(ExerciseCase((tables[0], tables[1], i % 2, k), f"k = {k}, {tokens} tokens in all", True, False))
    return made


def next_tokens(function: Function, case: ExerciseCase) -> dict[tuple[int, ...], float]:
    """The exact distribution of the next k + 1 tokens; where a round emits fewer, the target goes on alone."""
    return _continued(_rounds(function, case), case)


def _rounds(function: Function, case: ExerciseCase) -> dict[tuple[int, ...], float]:
    """The exact distribution of what a round emits."""
    k = case.arguments[3]
    found = distribution(lambda chance: called(function, *case.arguments, chance))
    for emitted in found:
        if not isinstance(emitted, tuple) or not 1 <= len(emitted) <= k + 1:
            raise BadRequest(f"a round with k = {k} emits 1 … {k + 1} tokens, not {emitted!r:.60}")
    if max(map(len, found)) <= k:
        message = (
            f"no round emits {k + 1} tokens: where all {k} drafted tokens are accepted, one more from the target is due"
        )
        raise BadRequest(message, found)
    return found


def _drafted(function: Function, case: ExerciseCase) -> dict[tuple[int, ...], float]:
    """The next tokens, of rounds that look at the draft: with another one, other tokens are kept."""
    target, draft, *rest = case.arguments
    rounds = _rounds(function, case)
    text = _continued(rounds, case)
    other = replace(case, arguments=(target, draft.roll(1, -1), *rest))
    if same(text, next_tokens(mended_round, case), 1e-4) and same(rounds, _rounds(function, other), 1e-6):
        raise BadRequest("with another draft your rounds come out the same: it decides nothing")
    return text


def _continued(rounds: dict[tuple[int, ...], float], case: ExerciseCase) -> dict[tuple[int, ...], float]:
    text: dict[tuple[int, ...], float] = {}
    for emitted, probability in rounds.items():
        _go_on(text, case.arguments[0], emitted, case.arguments[3] + 1, probability)
    return text


def _go_on(
    text: dict[tuple[int, ...], float], target: Tensor, emitted: tuple[int, ...], n: int, probability: float
) -> None:
    if len(emitted) == n:
        text[emitted] = text.get(emitted, 0.0) + probability
        return
    for token, p in enumerate(target[emitted[-1]].tolist()):
        _go_on(text, target, (*emitted, token), n, probability * p)


def _with(**mistakes: Any) -> Function:
    return lambda *arguments: _round(*arguments, **mistakes)


def _target(p: Tensor, q: Tensor) -> Tensor:
    return p


def _without_a_draft(target: Tensor, draft: Tensor, last: int, k: int, chance: Any) -> list[int]:
    text = [last]
    for _ in range(k + 1):
        text.append(chance.draw(target[text[-1]]))
    return text[1:]


MEND = Exercise(
    "mend",
    "Mend the bugs",
    "mended_round",
    15,
    3,
    (
        "Copy the broken round and change one line for each exhibit. Nothing else in it is wrong.",
        "A: what was drawn must come from the q that the rule is told: chance.draw(row). Or tell it a one-hot q.",
        "C: tokens behind a rejection do not count: how many are kept before the first False?",
        "B: after a rejection, draw from what is left of p: (p − q).clamp(min=0), divided by its sum.",
    ),
    mended_round,
    (
        Misconception("nothing-mended", "All three exhibits are still in it: change a line for each", 1, broken_round),
        Misconception(
            "a-left", "Exhibit A is still in it: the likeliest token is drafted, but judged as if drawn from q", 2,
            _with(greedy=True),
        ),
        Misconception(
            "b-left", "Exhibit B is still in it: after a rejection the target is drawn from, not what is left of it", 4,
            _with(left=_target),
        ),
        Misconception(
            "c-left", "Exhibit C is still in it: tokens behind a rejection are counted as kept", 3, _with(count=sum)
        ),
        Misconception(
            "b-and-c-left", "Exhibits B and C are still in it; A is mended", 3, _with(left=_target, count=sum)
        ),
        Misconception(
            "a-and-c-left", "Exhibits A and C are still in it; B is mended", 2, _with(greedy=True, count=sum)
        ),
        Misconception(
            "a-and-b-left", "Exhibits A and B are still in it; C is mended", 2, _with(greedy=True, left=_target)
        ),
        Misconception(
            "left-of-q", "After a rejection you draw from q − p: that is what the draft has too much of", 4,
            _with(left=lambda p, q: residual(q, p)),
        ),
        Misconception(
            "bonus-lost", "Your rounds end without the bonus: when all are kept, the target gives one more", 1,
            _with(bonus=False),
        ),
        Misconception(
            "draws-all-from-the-target", "You draw every token from the target: right, and no faster. Draft k first, "
            "then judge them", 1, _without_a_draft,
        ),
    ),
    cases,
    measure=_drafted,
)  # fmt: skip
