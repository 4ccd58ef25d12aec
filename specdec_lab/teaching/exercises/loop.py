"""Exercises on the step and the loop. Randomness is an argument, so that a check can compare exact distributions."""

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
    """One round, with typical mistakes as options."""
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
    """The tokens that a round emits: the accepted ones, then one more."""
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
    cases += [ExerciseCase((p, q, [1]), "one drafted token of p = 0.5, q = 0.2: always accepted", True, False)]
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
        "With which probability is drafted token i accepted, and which row of p do you need for it? Is a "
        "token after a rejection still useful?",
        "Go through the drafted tokens in order. At the first rejection, sample a replacement from the "
        "residual of that row, and stop. If all are accepted, the last row of p gives one more token.",
        "Accept token x at position i with probability min(1, p[i, x] / q[i, x]). The residual is max(0, "
        "p[i] − q[i]), normalized. The bonus token comes from p[k].",
    ),
    speculative_step,
    (
        Misconception(
            "residual-is-target",
            "After a rejection, you sample from the target. Sample from the residual: max(0, p − q), normalized",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, again=True),
        ),
        Misconception(
            "residual-is-draft",
            "After a rejection, you sample from the draft. Sample from the residual: max(0, p − q), normalized",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, left=lambda p, q: q),
        ),
        Misconception(
            "residual-below-zero",
            "Your residual p − q is negative where q > p. Use max(0, p − q)",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, left=lambda p, q: p - q),
        ),
        Misconception(
            "residual-not-normalized",
            "Your residual does not sum to 1. Divide it by its sum",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, left=lambda p, q: (p - q).clamp(min=0)),
        ),
        Misconception(
            "no-bonus",
            "If all drafted tokens are accepted, you emit nothing more. Row k of p gives one more token",
            2,
            lambda p, q, d, c: played_step(p, q, d, c, bonus=False),
        ),
        Misconception(
            "bonus-from-draft",
            "You sample the bonus token from the draft. It must come from the target, row k of p",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, bonus="draft"),
        ),
        Misconception(
            "bonus-from-wrong-row",
            "You sample the bonus token from row k − 1, which belongs to the last DRAFTED token. Use row k",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, bonus="last"),
        ),
        Misconception(
            "goes-on",
            "You continue after a rejection. The later tokens continue a text that was rejected, so stop there",
            2,
            lambda p, q, d, c: played_step(p, q, d, c, go_on=True),
        ),
        Misconception(
            "row-off-by-one",
            "You compare token i with row i + 1 of p. Row i is the target's distribution at the position of token i",
            1,
            lambda p, q, d, c: played_step(p, q, d, c, row=1),
        ),
        Misconception(
            "accepts-only-if-more-likely",
            "You accept only tokens with p ≥ q. A token with p < q is accepted with probability p/q",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, odds=lambda ratio: 1.0 if ratio >= 1 else 0.0),
        ),
        Misconception(
            "inverted",
            "You inverted the ratio. A token is accepted with probability min(1, p/q)",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, odds=lambda ratio: min(1.0, 1 / ratio)),
        ),
        Misconception(
            "ratio-not-bounded",
            "Where p > q, p/q is above 1 and is no probability. Use min(1, p/q)",
            3,
            lambda p, q, d, c: played_step(p, q, d, c, odds=lambda ratio: ratio),
        ),
    ),
    _step_cases,
)


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
    """n tokens after `start`. target, draft: [V, V]; row t is the distribution of the token after t."""
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
        else:  # all were accepted: the bonus token
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
    """Draft every token after the text's last one. q is the distribution sampled from, so one token comes out right."""
    text = [start]
    while len(text) - 1 < n:
        drafted = [chance.draw(draft[text[-1]]) for _ in range(k)]
        before = [text[-1], *drafted]
        text += played_step(target[before], draft[before[:-1]], drafted, chance)
    return text[1 : n + 1]


def _without_speculation(target: Tensor, draft: Tensor, start: int, n: int, k: int, chance: Any) -> list[int]:
    text = [start]
    while len(text) <= n:
        text.append(chance.draw(target[text[-1]]))
    return text[1:]


def _draft_unused(target: Tensor, draft: Tensor, start: int, n: int, k: int, chance: Any) -> list[int]:
    text = [start]
    while len(text) <= n:
        chance.draw(draft[text[-1]])
        text.append(chance.draw(target[text[-1]]))
    return text[1:]


def _decoded(function: Function, case: ExerciseCase) -> Any:
    """The exact distribution of the text. Raises BadRequest if the function does not speculate.

    A function that speculates makes more random decisions than it emits tokens, and their number varies, because a
    rejection discards drafted tokens. One correct method always makes 2n − 1 decisions: it samples a token from each
    model, accepts while they agree, and drafts no token for the last position.
    """
    taken: list[int] = []

    def watched(*arguments: Any) -> Any:
        value = function(*arguments)
        taken.append(len(arguments[-1].taken))
        return value

    value, (n, k) = observe(watched, case), case.arguments[3:]
    if max(taken) <= n > 1:
        raise BadRequest(
            f"{n} tokens took {n} random decisions, one for each token, so nothing was drafted and verified"
        )
    unused = min(taken) == max(taken) <= n * (k + 1)  # per token: k drafted tokens without a decision, and one sample
    if n > 2 and unused and max(taken) != 2 * n - 1:
        raise BadRequest(
            f"{n} tokens always take the same number of random decisions, so no drafted token was rejected"
        )
    cut = all(isinstance(text, tuple) and len(text) == n for text in value)
    if n == k + 1 and cut and min(taken) > 2 * k + 1 and not unused:
        raise BadRequest(f"no round emits {n} tokens with k = {k}: if all are accepted, the target gives one more")
    return value


def _decode_cases(seed: int) -> list[ExerciseCase]:
    """The shortest texts in which every mistake shows: one token, one round, and more than one round."""
    cases = []
    for i, (n, k) in enumerate(((1, 1), (2, 1), (3, 2), (2, 1), (3, 2))):
        tables = _rows(seed + i, 2, 2, 2) if n == 3 else _rows(seed + i, 2, 3, 3)
        arguments = tables[0], tables[1], i % 2, n, k
        words = f"{n} token{'s' * (n > 1)} with k = {k}, a vocabulary of {tables.shape[-1]}"
        cases.append(ExerciseCase(arguments, words, True, False))
    return cases


DECODE = Exercise(
    "decode",
    "Basic speculative decoding",
    "speculative_decode",
    40,
    4,
    (
        "Which steps make up one round? Which token comes directly before each drafted token?",
        "In each round, draft k tokens; each is sampled from the draft's row of the token before it. "
        "Verify them as in exercise 05, append the result, and repeat. The rows of the target belong to "
        "the text's last token and the k drafted tokens.",
        "Accept drafted token x with probability min(1, p[x]/q[x]), where p and q are the rows of the "
        "token before x. After a rejection, sample from max(0, p − q), normalized. After k accepted tokens, "
        "sample from the target's row of the last one. Return n tokens.",
    ),
    speculative_decode,
    (
        Misconception(
            "not-cut",
            "You return more than n tokens. The last round can emit more than you need, so cut the result",
            3,
            lambda *a: _decode(*a, cut=False),
        ),
        Misconception(
            "no-speculation",
            "You sample every token from the target. This is correct but no faster. Draft k tokens, then verify them",
            2,
            _without_speculation,
        ),
        Misconception(
            "draft-unused",
            "Your drafted tokens have no effect, because every token comes from the target. Accept or reject them",
            2,
            _draft_unused,
        ),
        Misconception(
            "no-bonus",
            "If all drafted tokens are accepted, you emit nothing more. The target's last row gives one more token",
            3,
            lambda *a: _decode(*a, bonus=False),
        ),
        Misconception(
            "greedy-draft",
            "You draft the most likely token, but accept or reject it as if it had been sampled from q",
            2,
            _greedy_draft,
        ),
        Misconception(
            "draft-forgets",
            "You draft every token after the same last token. Each drafted token continues the one before it",
            1,
            _draft_forgets,
        ),
        Misconception(
            "residual-is-target",
            "After a rejection, you sample from the target. Sample from the residual: max(0, p − q), normalized",
            3,
            lambda *a: _decode(*a, again=True),
        ),
        Misconception(
            "goes-on",
            "You continue after a rejection. The later tokens continue a text that was rejected, so stop there",
            2,
            lambda *a: _decode(*a, go_on=True),
        ),
        Misconception(
            "row-off-by-one",
            "You compare token i with row i + 1 of the target, which is one row too late",
            2,
            lambda *a: _decode(*a, row=1),
        ),
        Misconception(
            "bonus-from-draft",
            "You sample the bonus token from the draft. It must come from the target",
            3,
            lambda *a: _decode(*a, bonus="draft"),
        ),
    ),
    _decode_cases,
    measure=_decoded,
)
