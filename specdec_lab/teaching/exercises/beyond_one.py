"""Exercises on methods beyond one draft model: blocks, two candidates, and lossless samplers."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specdec_lab.teaching.exercises.exercise import (
    Exercise,
    ExerciseCase,
    Function,
    Misconception,
    called,
    shape_of,
    shown,
)
from specdec_lab.teaching.exercises.outcomes import BadRequest, distribution, frozen
from specdec_lab.teaching.exercises.rule import residual


def _rows(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (1.2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1)


def _tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Block verification


def block_round(p: Tensor, q: Tensor, drafted: list[int], chance: Any) -> list[int]:
    """The tokens that a round emits: a prefix of the block, then one more token. Sun et al. 2024, algorithm 2."""
    k = len(drafted)
    weights = [1.0]
    for i, token in enumerate(drafted):
        weights.append(min(1.0, weights[-1] * float(p[i, token] / q[i, token])))
    length = 0
    for i in range(1, k + 1):
        accept = weights[k]
        if i < k:
            excess = float((weights[i] * p[i] - q[i]).clamp(min=0).sum())
            rest = 1 - weights[i]
            accept = excess / (excess + rest) if excess + rest > 0 else 1.0
        if chance.accept(accept):
            length = i
    if length == k:
        return [*drafted, chance.draw(p[k])]
    left = (weights[length] * p[length] - q[length]).clamp(min=0)
    return [*drafted[:length], chance.draw(left / left.sum())]


def _block(
    p: Tensor,
    q: Tensor,
    drafted: list[int],
    chance: Any,
    *,
    clamp_alone: bool = False,
    minimum: bool = True,
    stop_at_failure: bool = False,
    first: bool = False,
    by_weight: bool = False,
    plain_residual: bool = False,
    target_again: bool = False,
) -> list[int]:
    """The round, with typical mistakes as options."""
    k = len(drafted)
    weights = [1.0]
    for i, token in enumerate(drafted):
        ratio = float(p[i, token] / q[i, token])
        weight = weights[-1] * (min(1.0, ratio) if clamp_alone else ratio)
        weights.append(min(1.0, weight) if minimum else weight)
    length = 0
    for i in range(1, k + 1):
        weight = min(1.0, weights[i])
        accept = weight
        if i < k and not by_weight:
            excess = float((weight * p[i] - q[i]).clamp(min=0).sum())
            accept = excess / (excess + 1 - weight) if excess + 1 - weight > 0 else 1.0
        accepted = chance.accept(accept)
        if accepted and not (first and length):
            length = i
        if not accepted and stop_at_failure:
            break
    if length == k:
        return [*drafted, chance.draw(p[k])]
    weight = 1.0 if plain_residual else min(1.0, weights[length])
    left = (weight * p[length] - q[length]).clamp(min=0)
    if target_again or left.sum() <= 0:
        left = p[length]
    return [*drafted[:length], chance.draw(left / left.sum())]


def token_round(p: Tensor, q: Tensor, drafted: list[int], chance: Any) -> list[int]:
    """The token-wise rule: stop at the first rejection."""
    for i, token in enumerate(drafted):
        if not chance.accept(min(1.0, float(p[i, token] / q[i, token]))):
            return [*drafted[:i], chance.draw(residual(p[i], q[i]))]
    return [*drafted, chance.draw(p[len(drafted)])]


def random_tables(seed: int, k: int) -> tuple[Tensor, Tensor]:
    """p [k + 1, 3] and q [k, 3] for one round, the same whatever was drafted before."""
    return _rows(seed, k + 1, 3), _rows(seed + 50, k, 3)


def accepted_tokens(rule: Function, p: Tensor, q: Tensor) -> float:
    """Expected number of accepted drafted tokens in a round, over all drafts and outcomes."""

    def play(chance: Any) -> list[int]:
        drafted = [chance.draw(row) for row in q]
        return [len(rule(p.clone(), q.clone(), drafted, chance)) - 1]

    lengths = distribution(play)
    return float(sum(probability * length for (length,), probability in lengths.items()))


def _block_cases(seed: int) -> list[ExerciseCase]:
    third, two_thirds = [1 / 3, 2 / 3], [2 / 3, 1 / 3]
    toy = _tensor(third, third, third), _tensor(two_thirds, two_thirds)
    single = _tensor([0.5, 0.5], [0.3, 0.7]), _tensor([0.8, 0.2]), [0]
    p, q = [[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.4, 0.3, 0.3]], [[0.7, 0.1, 0.2], [0.4, 0.1, 0.5]]
    cases = [
        ExerciseCase(single, "one token of p = 0.5, q = 0.8", True, False),
        ExerciseCase((*toy, [0, 1]), "p = [1/3, 2/3], q = [2/3, 1/3] in every row, drafted [0, 1]", True, False),
        ExerciseCase((*toy, [1, 0]), "p = [1/3, 2/3], q = [2/3, 1/3] in every row, drafted [1, 0]", True, False),
        ExerciseCase((_tensor(*p), _tensor(*q), [0, 2]), f"p = {p}, q = {q}, drafted [0, 2]", True),
        ExerciseCase((_tensor([0.4, 0.6]), torch.zeros(0, 2, dtype=torch.float64), []), "nothing drafted", True, False),
        ExerciseCase((toy[0], toy[0][:2], [0, 1]), "p = q = [1/3, 2/3] in every row, drafted [0, 1]", True, False),
    ]  # fmt: skip
    for i in range(8):
        k = 2 + i % 2
        target, draft = _rows(seed + i, k + 1, 3), _rows(seed + i + 50, k, 3)
        drafted = (draft - target[:k]).argmax(-1).tolist()
        drafted[-1] = i % 3
        if i % 4 > 1:
            drafted[0] = int((draft - target[:k])[0].argmin())
        cases.append(ExerciseCase((target, draft, drafted), f"{k} drafted tokens of 3: {drafted}", True, False))
    return cases


BLOCK = Exercise(
    "block",
    "Block verification",
    "block_round",
    30,
    4,
    (
        "The token-wise rule cannot use the part of a ratio p/q that is above 1. Which other token of the"
        " block could use it?",
        "Keep a running product of the ratios that never exceeds 1. Decide about every length with its "
        "own random number, and keep the LARGEST accepted length.",
        "Sᵢ = Σ max(wᵢ·p − q, 0) with the rows after i tokens. Length i < k is accepted with probability "
        "Sᵢ/(Sᵢ + 1 − wᵢ), and length k with w_k. After length τ < k, the next token comes from max(w_τ·p"
        " − q, 0), normalized.",
    ),
    block_round,
    (
        Misconception(
            "token-by-token",
            "You use the token-wise rule. It is exact, but a block can accept more tokens",
            2,
            token_round,
        ),
        Misconception(
            "stops-at-first-failure",
            "You stop at the first length that is not accepted. A longer one may be accepted: take the largest",
            2,
            lambda *a: _block(*a, stop_at_failure=True),
        ),
        Misconception(
            "smallest-length",
            "You keep the smallest accepted length. Keep the largest",
            2,
            lambda *a: _block(*a, first=True),
        ),
        Misconception(
            "ratios-clamped-alone",
            "You clamp each ratio before you multiply, so a ratio above 1 is lost",
            2,
            lambda *a: _block(*a, clamp_alone=True),
        ),
        Misconception(
            "clamped-at-the-end",
            "You clamp only the final product. The running product must not exceed 1 at any position",
            2,
            lambda *a: _block(*a, minimum=False),
        ),
        Misconception(
            "weight-as-probability",
            "You accept length i < k with probability wᵢ. The residual after i tokens counts too, so the "
            "probability is Sᵢ/(Sᵢ + 1 − wᵢ)",
            3,
            lambda *a: _block(*a, by_weight=True),
        ),
        Misconception(
            "residual-without-weight",
            "You use max(p − q, 0) as the residual. After τ tokens, it is max(w_τ·p − q, 0)",
            3,
            lambda *a: _block(*a, plain_residual=True),
        ),
        Misconception(
            "residual-is-target",
            "After a rejection, you sample from the target. Sample from max(w_τ·p − q, 0), normalized",
            3,
            lambda *a: _block(*a, target_again=True),
        ),
    ),
    _block_cases,
)


# Two candidates for one position


def emit_one(p: Tensor, q: Tensor, candidates: list[int], chance: Any) -> Any:
    """One token, from two candidates that were sampled independently from q (SpecInfer)."""
    left = p
    for token in candidates:
        if chance.accept(min(1.0, float(left[token] / q[token]))):
            return token
        rest = (left - q).clamp(min=0)
        left = rest / rest.sum() if rest.sum() > 0 else left
    return chance.draw(left)


def _two(
    p: Tensor,
    q: Tensor,
    candidates: list[int],
    chance: Any,
    *,
    merge: bool = False,
    sort: Tensor | None = None,
    p_again: bool = False,
    end: str = "residual",
    renormalize: bool = False,
    masses: bool = False,
    divide: bool = True,
) -> int:
    """The same, with typical mistakes as options."""
    left, draft = p, q
    tokens = list(dict.fromkeys(candidates)) if merge else list(candidates)
    if sort is not None:
        tokens.sort(key=lambda token: -float(sort[token]))
    for token in tokens:
        probability = float(left[token]) if masses else min(1.0, float(left[token] / draft[token]))
        if chance.accept(min(1.0, probability)):
            return token
        if not p_again:
            rest = (left - draft).clamp(min=0)
            left = residual(left, draft) if divide else rest
        if renormalize and len(set(tokens)) > 1:
            draft = draft.clone()
            draft[token] = 0
            draft = draft / draft.sum()
    if end == "target":
        left = p
    if end == "once":
        left = residual(p, q)
    return int(chance.draw(left / left.sum()))


def _candidate_cases(seed: int) -> list[ExerciseCase]:
    p, q = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]
    words = "p = [0.5, 0.3, 0.2], q = [0.2, 0.3, 0.5], candidates "
    cases = [ExerciseCase((*_tensor(p, q), c), f"{words}{c}", True) for c in ([2, 2], [2, 0], [2, 1], [0, 2])]
    p, q = [0.3, 0.32, 0.19, 0.19], [0.5, 0.3, 0.1, 0.1]
    words = f"p = {p}, q = {q}, candidates "
    cases += [ExerciseCase((*_tensor(p, q), c), f"{words}{c}", True) for c in ([0, 1], [0, 0])]
    for i in range(12):
        rows = _rows(seed + i, 4), _rows(seed + i + 50, 4)
        excess = (rows[1] - rows[0]).sort(descending=True)
        first = int(excess.indices[0])
        smallest_lack = int(excess.indices[excess.values < 0][0])
        candidates = [first, [first, int(excess.indices[1]), smallest_lack][i % 3]]
        cases.append(ExerciseCase((*rows, candidates), f"4 tokens, candidates {candidates}", True, False))
    return cases


def _emitted(function: Function, case: ExerciseCase) -> Any:
    """The exact distribution of the token."""

    def play(chance: Any) -> list[int]:
        token = called(function, *case.arguments, chance)
        if not isinstance(frozen(token), int):
            raise BadRequest(f"emit_one returns {shape_of(token)}; expected one token id")
        return [frozen(token)]

    return distribution(play)


CANDIDATES = Exercise(
    "candidates",
    "Two candidates for one position",
    "emit_one",
    20,
    3,
    (
        "The first candidate was rejected. Which distribution must the next token have now: still p, or another one?",
        "After each rejection, the residual takes the place of p. The distribution q stays as it is, because "
        "both candidates were sampled from q independently, even if they are the same token.",
        "Accept x₁ with probability min(1, p/q). After its rejection, p′ = norm(max(0, p − q)), where norm "
        "divides by the sum. Accept x₂ with probability min(1, p′/q). After both rejections, sample from "
        "norm(max(0, p′ − q)).",
    ),
    emit_one,
    (
        Misconception(
            "second-against-p",
            "You compare the second candidate with p. After a rejection, the residual takes the place of p",
            1,
            lambda *a: _two(*a, p_again=True, end="once"),
        ),
        Misconception(
            "target-at-the-end",
            "After both rejections, you sample from p. Sample from the residual of the residual",
            3,
            lambda *a: _two(*a, end="target"),
        ),
        Misconception(
            "residual-once",
            "After both rejections, you sample from the first residual. Subtract q once more",
            3,
            lambda *a: _two(*a, end="once"),
        ),
        Misconception(
            "duplicates-merged",
            "You merge equal candidates. Both were sampled from q, so try both",
            2,
            lambda *a: _two(*a, merge=True),
        ),
        Misconception(
            "sorted-by-target",
            "You first try the candidate that the target prefers. The order must not depend on p",
            1,
            lambda p, q, c, chance: _two(p, q, c, chance, sort=p),
        ),
        Misconception(
            "sorted-by-draft",
            "You first try the candidate that the draft prefers. Its distribution is then no longer q",
            2,
            lambda p, q, c, chance: _two(p, q, c, chance, sort=q),
        ),
        Misconception(
            "draft-renormalized",
            "You remove the rejected token from q. That is right for sampling without replacement, but these "
            "two candidates were sampled independently",
            2,
            lambda *a: _two(*a, renormalize=True),
        ),
        Misconception(
            "point-masses",
            "You accept with probability p(x). That is right for a fixed candidate, but these were sampled from q",
            3,
            lambda *a: _two(*a, masses=True),
        ),
        Misconception(
            "residual-not-normalized",
            "Your residual does not sum to 1, so the second candidate is accepted too rarely",
            3,
            lambda *a: _two(*a, divide=False),
        ),
    ),
    _candidate_cases,
    measure=_emitted,
)


# Lossless or not?


def sampler_a(p: Tensor, q: Tensor, chance: Any) -> int:
    """The draft's most likely token, accepted with p(x); else p without it."""
    x = int(q.argmax())
    if chance.accept(p[x]):
        return x
    rest = p.clone()
    rest[x] = 0
    return int(chance.draw(rest / rest.sum()))


def sampler_b(p: Tensor, q: Tensor, chance: Any) -> int:
    """A sample of q, accepted with min(1, p/q); else a sample of p."""
    x = chance.draw(q)
    if chance.accept(min(1.0, float(p[x] / q[x]))):
        return int(x)
    return int(chance.draw(p))


def sampler_c(p: Tensor, q: Tensor, chance: Any) -> int:
    """Two samples of q; the one that the target prefers is tried first."""
    candidates = sorted([chance.draw(q), chance.draw(q)], key=lambda x: -float(p[x]))
    return int(emit_one(p, q, candidates, chance))


def sampler_d(p: Tensor, q: Tensor, chance: Any) -> int:
    """The draft's two most likely tokens in turn, each accepted with its probability under the rest of p."""
    rest = p.clone()
    for x in q.argsort(descending=True)[:2].tolist():
        if rest.sum() > 0 and chance.accept(rest[x] / rest.sum()):
            return int(x)
        rest[x] = 0
    return int(chance.draw(rest / rest.sum()))


def sampler_e(p: Tensor, q: Tensor, chance: Any) -> int:
    """A sample of q, accepted if p(x) is above a threshold; else a sample of p."""
    x = chance.draw(q)
    entropy = -float((p * p.clamp(min=1e-30).log()).sum())
    if p[x] > min(0.09, 0.3 * math.exp(-entropy)):
        return int(x)
    return int(chance.draw(p))


def sampler_f(p: Tensor, q: Tensor, chance: Any) -> int:
    """Two different samples of q in turn; q is renormalized without the first one."""
    rest, draft = p, q
    for _ in range(min(2, int((q > 0).sum()))):
        x = chance.draw(draft)
        if chance.accept(min(1.0, float(rest[x] / draft[x]))):
            return int(x)
        rest = residual(rest, draft)
        draft = draft.clone()
        draft[x] = 0
        draft = draft / draft.sum()
    return int(chance.draw(rest))


SAMPLERS: dict[str, Callable[[Tensor, Tensor, Any], int]] = {
    "A": sampler_a,
    "B": sampler_b,
    "C": sampler_c,
    "D": sampler_d,
    "E": sampler_e,
    "F": sampler_f,
}
SMALLEST_DISTANCE = 0.01
"""The smallest total variation of a valid counterexample."""


def distance(sampler: Callable[[Tensor, Tensor, Any], int], p: Any, q: Any) -> float:
    """Exact total variation between the output of a sampler and p. p, q: [V], each sums to one."""
    target = torch.as_tensor(p, dtype=torch.float64)
    draft = torch.as_tensor(q, dtype=torch.float64)
    sampled = distribution(lambda chance: [sampler(target, draft, chance)])
    return sum(abs(sampled.get((x,), 0.0) - float(target[x])) for x in range(len(target))) / 2


def counterexamples() -> dict[str, Any]:
    """For each sampler: None if it is lossless, else p and q for which its output is not distributed as p."""
    p, q = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]
    return {"A": None, "B": (p, q), "C": (p, q), "D": None, "E": (p, q), "F": None}


LOSSLESS, LOSSY, MISSED, NO_COUNTEREXAMPLE = "lossless", "lossy", "called lossless", "no counterexample"


def _first_wrong(function: Function, case: ExerciseCase) -> Any:
    """The first sampler with a wrong answer, and that answer; all answers if none is wrong."""
    answer = called(function)
    if not isinstance(answer, dict) or set(answer) != set(SAMPLERS):
        raise BadRequest(
            f"counterexamples returns {shape_of(answer)}; expected a dict with the keys {', '.join(SAMPLERS)}"
        )
    results = {}
    for letter, sampler in SAMPLERS.items():
        truth = LOSSLESS if letter in "ADF" else LOSSY
        examined = _judged(letter, sampler, answer[letter])
        if examined != truth:
            return {letter: MISSED if examined == LOSSLESS else NO_COUNTEREXAMPLE}
        results[letter] = examined
    return results


def _judged(letter: str, sampler: Callable[[Tensor, Tensor, Any], int], answer: Any) -> str:
    """Whether the answer calls a sampler lossless, or shows that it is lossy, or shows nothing."""
    if answer is None:
        return LOSSLESS
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise BadRequest(f"{letter} is {shown(answer)}; expected None or a pair (p, q)")
    try:
        p, q = (torch.as_tensor(row, dtype=torch.float64) for row in answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadRequest(f"{letter}: p and q are {shown(answer)}; expected two lists of probabilities") from error
    for name, row in (("p", p), ("q", q)):
        if row.ndim != 1 or len(row) != len(p) or not 2 <= len(row) <= 6:
            raise BadRequest(
                f"{letter}: {name} has the shape {list(row.shape)}; expected 2 to 6 probabilities, as many in p as in q"
            )
        if not bool((row >= 0).all()) or abs(float(row.sum()) - 1) > 1e-6:
            raise BadRequest(f"{letter}: {name} is {shown(row)}; expected probabilities that sum to 1")
    return LOSSY if distance(sampler, p, q) >= SMALLEST_DISTANCE else "no difference"


_PAIR = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]


def _with(letter: str, answer: Any) -> Function:
    return lambda: counterexamples() | {letter: answer}


LOSSLESS_OR_NOT = Exercise(
    "lossless",
    "Lossless or not?",
    "counterexamples",
    20,
    3,
    (
        "Does the choice of the candidates, or their order, depend on the target? What happens with p and"
        " q of two or three tokens?",
        '`distance(SAMPLERS["B"], p, q)` computes the exact total variation. Search over random p and q.',
        "Two rules are lossless. A candidate x that q determines is accepted with probability p(x), and removed "
        "from p after a rejection. A candidate that was sampled from q is accepted with probability "
        "min(1, p/q), and the residual replaces p after a rejection. Which samplers follow neither rule?",
    ),
    counterexamples,
    (
        Misconception(
            "a-called-lossy",
            "A is lossless, so there is no counterexample. Its candidate x depends on the draft alone. "
            "Accepting x with probability p(x), and removing it otherwise, is the same as sampling from p",
            3,
            _with("A", _PAIR),
        ),
        Misconception(
            "b-called-lossless",
            "B is lossy. After a rejection, it samples from p, so tokens that the draft samples too often "
            "come out too often",
            3,
            _with("B", None),
        ),
        Misconception(
            "c-called-lossless",
            "C is lossy. The target chooses which candidate is tried first, so that candidate is not a sample of q",
            1,
            _with("C", None),
        ),
        Misconception(
            "d-called-lossy",
            "D is lossless, so there is no counterexample. Both candidates depend on the draft alone, and "
            "each is accepted with its probability under the rest of p",
            3,
            _with("D", _PAIR),
        ),
        Misconception(
            "e-called-lossless",
            "E is lossy. Its threshold accepts every typical token, however often the draft samples that token",
            3,
            _with("E", None),
        ),
        Misconception(
            "f-called-lossy",
            "F is lossless, so there is no counterexample. Its second sample comes from the renormalized q, "
            "and it is compared with this same q",
            3,
            _with("F", _PAIR),
        ),
    ),
    lambda seed: [ExerciseCase((), "samplers A to F")],
    measure=_first_wrong,
    secret=True,
)
