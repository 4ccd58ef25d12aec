"""The step and the loop: chance is handed in, so that the check plays every outcome and compares distributions."""

from typing import Any

import torch
from torch import Tensor

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Function, Misconception, observe
from specdec_lab.teaching.exercises.outcomes import BadRequest
from specdec_lab.teaching.exercises.rule import residual


def played_step(
    p: Tensor,
    q: Tensor,
    drafted: list[int],
    chance: Any,
    *,
    row: int = 0,
    again: bool = False,
    bonus: Any = True,
    go_on: bool = False,
    odds: Any = None,
    left: Any = residual,
) -> list[int]:
    """One round, with the mistakes that people make as options."""
    k, emitted = len(drafted), []
    for i, token in enumerate(drafted):
        at = min(i + row, k)
        ratio = float(p[at, token] / q[i, token])
        if chance.accept(min(1.0, ratio) if odds is None else odds(ratio)):
            emitted.append(token)
            continue
        emitted.append(chance.draw(p[at] if again else left(p[at], q[i])))
        if not go_on:
            return emitted
    if bonus == "draft":
        emitted.append(chance.draw(q[-1]))
    elif bonus == "last":
        emitted.append(chance.draw(p[k - 1]))
    elif bonus:
        emitted.append(chance.draw(p[k]))
    return emitted


def speculative_step(p: Tensor, q: Tensor, drafted: list[int], chance: Any) -> list[int]:
    """The tokens that a round emits: accepted ones, then one more."""
    emitted: list[int] = []
    for i, token in enumerate(drafted):
        if not chance.accept(min(1.0, float(p[i, token] / q[i, token]))):
            rest = (p[i] - q[i]).clamp(min=0)
            return [*emitted, chance.draw(rest / rest.sum())]
        emitted.append(token)
    return [*emitted, chance.draw(p[len(drafted)])]


def _rows(seed: int, *shape: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(*shape, generator=chance, dtype=torch.float64)).softmax(-1)


def _step_cases(seed: int) -> list[ExerciseCase]:
    p = torch.tensor([[0.5, 0.5], [0.3, 0.7]], dtype=torch.float64)
    q = torch.tensor([[0.8, 0.2]], dtype=torch.float64)
    cases = [ExerciseCase((p, q, [0]), "one drafted token of p = 0.5, q = 0.8", True, False)]
    cases += [ExerciseCase((p, q, [1]), "one drafted token of p = 0.5, q = 0.2: always kept", True, False)]
    for i, drafted in enumerate(([0, 1], [2, 2], [1, 0, 2])):
        k = len(drafted)
        arguments = _rows(seed + i, k + 1, 3), _rows(seed + i + 50, k, 3), drafted
        cases.append(ExerciseCase(arguments, f"{k} drafted tokens of 3: {drafted}", True, False))
    return cases


STEP = Exercise(
    "step",
    "The speculative step",
    "speculative_step",
    20,
    4,
    (
        "Go through the drafted tokens in turn; keep token x with probability min(1, p[i, x] / q[i, x]).",
        "At the first rejection draw from the residual of that row, and stop. What follows was drafted after it.",
        "All kept? Then p[k], the row after the last drafted token, gives one token more: the bonus.",
    ),
    speculative_step,
    (
        Misconception(
            "residual-is-target", "After a rejection you draw from the target itself; draw from what is left, p − q", 2,
            lambda p, q, d, c: played_step(p, q, d, c, again=True),
        ),
        Misconception(
            "residual-is-draft", "After a rejection you draw from the draft; draw from what is left, p − q", 2,
            lambda p, q, d, c: played_step(p, q, d, c, left=lambda p, q: q),
        ),
        Misconception(
            "residual-below-zero", "p − q is below 0 where the draft has too much: only what is above 0 is left", 2,
            lambda p, q, d, c: played_step(p, q, d, c, left=lambda p, q: p - q),
        ),
        Misconception(
            "residual-not-normalised", "What is left of p does not add up to 1 yet: divide it by its sum", 2,
            lambda p, q, d, c: played_step(p, q, d, c, left=lambda p, q: (p - q).clamp(min=0)),
        ),
        Misconception(
            "no-bonus", "When all are kept you emit nothing more: row k of p gives one token for free", 3,
            lambda p, q, d, c: played_step(p, q, d, c, bonus=False),
        ),
        Misconception(
            "bonus-from-draft", "You draw the bonus token from the draft. It must come from the target, row k of p", 3,
            lambda p, q, d, c: played_step(p, q, d, c, bonus="draft"),
        ),
        Misconception(
            "bonus-from-wrong-row", "You draw the bonus from row k − 1, which was about the last DRAFTED token", 3,
            lambda p, q, d, c: played_step(p, q, d, c, bonus="last"),
        ),
        Misconception(
            "goes-on", "You go on after a rejection: later tokens were drafted after one that is not in the text", 2,
            lambda p, q, d, c: played_step(p, q, d, c, go_on=True),
        ),
        Misconception(
            "row-off-by-one", "You judge token i by row i + 1 of p. Row i is what the target says BEFORE token i", 1,
            lambda p, q, d, c: played_step(p, q, d, c, row=1),
        ),
        Misconception(
            "keeps-if-likelier", "You keep a token only where p ≥ q: below that it is kept sometimes", 1,
            lambda p, q, d, c: played_step(p, q, d, c, odds=lambda ratio: 1.0 if ratio >= 1 else 0.0),
        ),
        Misconception(
            "inverted", "You turned the ratio round: a token is kept with min(1, p/q), not q/p", 1,
            lambda p, q, d, c: played_step(p, q, d, c, odds=lambda ratio: min(1.0, 1 / ratio)),
        ),
        Misconception(
            "ratio-not-bounded", "p/q is not a probability where p > q: take min(1, p/q)", 1,
            lambda p, q, d, c: played_step(p, q, d, c, odds=lambda ratio: ratio),
        ),
    ),
    _step_cases,
)  # fmt: skip


def _decode(
    target: Tensor, draft: Tensor, start: int, n: int, k: int, chance: Any, *, cut: bool = True, **mistakes: Any
) -> list[int]:
    text = [start]
    while len(text) - 1 < n:
        drafted: list[int] = []
        for _ in range(k):
            drafted.append(chance.draw(draft[[*text, *drafted][-1]]))
        before = [text[-1], *drafted]
        text += played_step(target[before], draft[before[:-1]], drafted, chance, **mistakes)
    return text[1 : n + 1] if cut else text[1:]


def speculative_decode(target: Tensor, draft: Tensor, start: int, n: int, k: int, chance: Any) -> list[int]:
    """n tokens after `start`. target, draft: [V, V], row t is the distribution of the token after t."""
    text = [start]
    while len(text) <= n:
        drafted: list[int] = []
        for _ in range(k):
            drafted.append(chance.draw(draft[([text[-1], *drafted])[-1]]))
        before = [text[-1], *drafted]
        for last, token in zip(before, drafted, strict=False):
            p, q = target[last], draft[last]
            if not chance.accept(min(1.0, float(p[token] / q[token]))):
                rest = (p - q).clamp(min=0)
                text.append(chance.draw(rest / rest.sum()))
                break
            text.append(token)
        else:  # all were kept: the bonus
            text.append(chance.draw(target[before[-1]]))
    return text[1 : n + 1]


def _greedy_draft(target: Tensor, draft: Tensor, start: int, n: int, k: int, chance: Any) -> list[int]:
    text = [start]
    while len(text) - 1 < n:
        drafted: list[int] = []
        for _ in range(k):
            drafted.append(int(draft[[*text, *drafted][-1]].argmax()))
        before = [text[-1], *drafted]
        text += played_step(target[before], draft[before[:-1]], drafted, chance)
    return text[1 : n + 1]


def _draft_forgets(target: Tensor, draft: Tensor, start: int, n: int, k: int, chance: Any) -> list[int]:
    """Drafts every token after the text's last one; q is what it drew from, so the result is right for one token."""
    text = [start]
    while len(text) - 1 < n:
        drafted = [chance.draw(draft[text[-1]]) for _ in range(k)]
        before = [text[-1], *drafted]
        text += played_step(target[before], draft[before[:-1]], drafted, chance)
    return text[1 : n + 1]


def _one_by_one(target: Tensor, draft: Tensor, start: int, n: int, k: int, chance: Any) -> list[int]:
    text = [start]
    while len(text) <= n:
        text.append(chance.draw(target[text[-1]]))
    return text[1:]


def _in_vain(target: Tensor, draft: Tensor, start: int, n: int, k: int, chance: Any) -> list[int]:
    text = [start]
    while len(text) <= n:
        chance.draw(draft[text[-1]])
        text.append(chance.draw(target[text[-1]]))
    return text[1:]


def _decoded(function: Function, case: ExerciseCase) -> Any:
    """The distribution of the text, if something was drafted for it: then chance decides more often than it has tokens.

    And not always equally often, since a rejected draft was in vain. With one exception that is right, which decides
    2n − 1 times: a token is drawn from each model, and kept while they agree; none is drafted for the last place.
    """
    taken: list[int] = []

    def watched(*arguments: Any) -> Any:
        value = function(*arguments)
        taken.append(len(arguments[-1].taken))
        return value

    value, (n, k) = observe(watched, case), case.arguments[3:]
    if max(taken) <= n > 1:
        raise BadRequest(f"{n} tokens took {n} decisions of chance: one for each, so nothing was drafted and judged")
    in_vain = min(taken) == max(taken) <= n * (k + 1)  # for each token k drafts, which nobody judges, and a draw
    if n > 2 and in_vain and max(taken) != 2 * n - 1:
        raise BadRequest(f"{n} tokens always take as many decisions of chance, so no draft was judged and rejected")
    cut = all(isinstance(text, tuple) and len(text) == n for text in value)
    if n == k + 1 and cut and min(taken) > 2 * k + 1 and not in_vain:
        raise BadRequest(f"no round gives {n} tokens with k = {k}: when all are kept, the target gives one more")
    return value


def _decode_cases(seed: int) -> list[ExerciseCase]:
    """The shortest texts in which every mistake shows: one token, a whole round, more than one."""
    cases = []
    for i, (n, k) in enumerate(((1, 1), (2, 1), (3, 2), (2, 1), (3, 2))):
        tables = _rows(seed + i, 2, 2, 2) if n == 3 else _rows(seed + i, 2, 3, 3)
        arguments = tables[0], tables[1], i % 2, n, k
        words = f"{n} token{'s' * (n > 1)} with k = {k}, {tables.shape[-1]} tokens in all"
        cases.append(ExerciseCase(arguments, words, True, False))
    return cases


DECODE = Exercise(
    "decode",
    "8.1.1 Basic speculative decoding",
    "speculative_decode",
    40,
    4,
    (
        "A round: draft k tokens one after the other, each after the last; judge them as your step of exercise 05 does "
        "(copy it into this notebook); append; repeat.",
        "Row i of p is the target's distribution after the i-th of [last token, drafted …]: k + 1 rows in all.",
        "A round can emit more than is wanted: return exactly n tokens.",
    ),
    speculative_decode,
    (
        Misconception(
            "not-cut", "You return more than n tokens: the last round may emit more than are wanted", 3,
            lambda *a: _decode(*a, cut=False),
        ),
        Misconception(
            "one-by-one", "You draw every token from the target: right, and no faster. Draft k, then judge them", 1,
            _one_by_one,
        ),
        Misconception(
            "drafts-in-vain", "What you draft decides nothing: every token is drawn from the target. Judge the drafted "
            "ones", 1, _in_vain,
        ),
        Misconception(
            "no-bonus", "When all are kept you emit nothing more: the target's last row gives one token for free", 2,
            lambda *a: _decode(*a, bonus=False),
        ),
        Misconception(
            "greedy-draft", "You draft the likeliest token but judge it as if drawn from q", 1, _greedy_draft
        ),
        Misconception(
            "draft-forgets", "You draft every token after the same last token; each comes after the one before it", 1,
            _draft_forgets,
        ),
        Misconception(
            "residual-is-target", "After a rejection you draw from the target itself; draw from what is left, p − q", 2,
            lambda *a: _decode(*a, again=True),
        ),
        Misconception(
            "goes-on", "You go on after a rejection: later tokens were drafted after one that is not in the text", 1,
            lambda *a: _decode(*a, go_on=True),
        ),
        Misconception(
            "row-off-by-one", "You judge token i by row i + 1 of the target: one row too late", 2,
            lambda *a: _decode(*a, row=1),
        ),
        Misconception(
            "bonus-from-draft", "You draw the bonus token from the draft; it must come from the target", 2,
            lambda *a: _decode(*a, bonus="draft"),
        ),
    ),
    _decode_cases,
    measure=_decoded,
)  # fmt: skip
