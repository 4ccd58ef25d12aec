"""The first building blocks: the verdict, the residual, what a round yields."""

from typing import Any

import torch
from torch import Tensor

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception


def _random(seed: int, *shape: int) -> Tensor:
    """Distributions over the last dimension, unlike each other."""
    chance = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(*shape, generator=chance, dtype=torch.float64)).softmax(-1)


# The verdict


def accepts(p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """Keep each drafted token while u is below p/q."""
    return u < p / q


def _verdict_cases(seed: int) -> list[ExerciseCase]:
    chance = torch.Generator().manual_seed(seed)

    def few(p: list[float], q: list[float], u: list[float], words: str) -> ExerciseCase:
        return ExerciseCase(tuple(torch.tensor(x, dtype=torch.float64) for x in (p, q, u)), words)

    def one(p: float, q: float, u: float) -> ExerciseCase:
        return few([p], [q], [u], f"p = {p}, q = {q}, u = {u}")

    def many(n: int) -> ExerciseCase:
        p, q, u = (torch.rand(n, generator=chance, dtype=torch.float64).clamp(min=0.01) for _ in range(3))
        return ExerciseCase((p, q, u), f"{n} random p, q and u", spelled=False)

    return [
        one(0.6, 0.3, 0.9),
        one(0.16, 0.4, 0.45),
        one(0.16, 0.4, 0.3),
        one(0.0, 0.4, 0.0),
        one(0.1, 0.8, 0.5),
        few(
            [0.1, 0.6, 0.0],
            [0.8, 0.3, 0.4],
            [0.5, 0.9, 0.0],
            "p = [0.1, 0.6, 0], q = [0.8, 0.3, 0.4], u = [0.5, 0.9, 0]",
        ),
        one(0.2501, 0.5, 0.5001),
        one(0.4, 0.5, 0.7999),
        many(40),
        many(200),
    ]


ACCEPT = Exercise(
    "accept",
    "The verdict",
    "accepts",
    10,
    1,
    (
        "A token that the target likes at least as much as the draft did is always kept: min(1, p/q).",
        "'With probability x' means: u < x, for u uniform in [0, 1). Why '<' and not '<='? Think of u = 0, p = 0.",
        "Each token is judged by its own p, q and u. Stopping at the first rejection comes later, in exercise 05.",
    ),
    accepts,
    (
        Misconception(
            "at-most",
            "You accept at u = p/q as well: with u = 0 that lets through a token of p = 0, which the target never says",
            2,
            lambda p, q, u: u <= p / q,
        ),
        Misconception(
            "inverted", "You compare with q/p; what counts is how much MORE the target likes the token: p/q", 1,
            lambda p, q, u: u < q / p,
        ),
        Misconception(
            "ignores-q", "You compare u with p alone. A token was already chosen with probability q: divide by it", 1,
            lambda p, q, u: u < p,
        ),
        Misconception(
            "no-chance", "You keep a token only where p ≥ q. Where p < q it is kept, too, with probability p/q", 2,
            lambda p, q, u: p >= q,
        ),
        Misconception(
            "opposite", "You say True where the token is rejected: it is kept while u is BELOW p/q", 2,
            lambda p, q, u: u >= p / q,
        ),
        Misconception(
            "squared", "Your ratio is squared somewhere: the probability is p/q itself", 1,
            lambda p, q, u: u < (p / q) ** 2,
        ),
        Misconception(
            "half", "You compare p/q with a fixed threshold of one half; it has to be compared with u", 2,
            lambda p, q, u: p / q > 0.5,
        ),
        Misconception(
            "cumulative", "You reject every token after the first rejection; here each token is judged by itself", 3,
            lambda p, q, u: (u < p / q).long().cumprod(0).bool(),
        ),
    ),
    _verdict_cases,
)  # fmt: skip


# The residual


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What is left of p when the draft's share has been taken away, normalized; p itself where nothing is left."""
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)


def _residual_cases(seed: int) -> list[ExerciseCase]:
    def rows(p: list[Any], q: list[Any], words: str) -> ExerciseCase:
        return ExerciseCase((torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)), words)

    equal, other = [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]
    random, blocks = _random(seed, 2, 4, 6), _random(seed + 1, 2, 2, 3, 4)
    blocks[1, 0, 1] = blocks[0, 0, 1]
    return [
        rows([0.7, 0.3], [0.4, 0.6], "p = [0.7, 0.3], q = [0.4, 0.6]"),
        rows(other, equal, "p = [0.5, 0.3, 0.2], q = [0.1, 0.2, 0.7]"),
        ExerciseCase((random[0], random[1]), "4 rows of 6 tokens", spelled=False),
        rows(equal, equal, "p = q = [0.1, 0.2, 0.7]"),
        rows([equal, other], [equal, other], "two rows, p = q = [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]"),
        rows(
            [equal, other],
            [equal, equal],
            "two rows, p = [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], q = [0.1, 0.2, 0.7] twice",
        ),
        rows(other, [0.49, 0.31, 0.2], "nearly equal: p = [0.5, 0.3, 0.2], q = [0.49, 0.31, 0.2]"),
        ExerciseCase((blocks[0], blocks[1]), "2 blocks of 3 rows of 4 tokens; p = q in one of the rows", spelled=False),
    ]


def _divided(rest: Tensor) -> Tensor:
    return rest / rest.sum(-1, keepdim=True)


RESIDUAL = Exercise(
    "residual",
    "The residual",
    "residual",
    10,
    1,
    (
        "The draft could contribute min(p, q) of each token. What is missing from p is max(0, p − q).",
        "Normalize over the last dimension: rest.sum(-1, keepdim=True).",
        "Where p = q nothing is left, and 0/0 is NaN. Rounding can reject there: fall back to p (torch.where).",
    ),
    residual,
    (
        Misconception(
            "target",
            "You draw from the target again. What the draft could contribute is counted twice then: left over is p − q",
            1,
            lambda p, q: p,
        ),
        Misconception(
            "nan-where-equal", "Where p = q you divide 0 by 0", 3, lambda p, q: _divided((p - q).clamp(min=0))
        ),
        Misconception(
            "zeros-where-equal", "Where p = q you give zeros, from which nothing can be drawn: fall back to p", 3,
            lambda p, q: _divided((p - q).clamp(min=0)).nan_to_num(0.0),
        ),
        Misconception(
            "uniform-where-equal", "Where p = q you make all tokens equally likely: the target's own p is due there", 3,
            lambda p, q: _divided((p - q).clamp(min=0)).nan_to_num(1 / p.shape[-1]),
        ),
        Misconception(
            "rows-not-alone", "You fall back to p only where ALL rows are equal; one row may be equal by itself", 3,
            lambda p, q: p if torch.equal(p, q) else _divided((p - q).clamp(min=0)),
        ),
        Misconception(
            "not-normalised", "Your residual does not add up to 1: nothing can be drawn from it", 2,
            lambda p, q: torch.where((p - q).abs().sum(-1, keepdim=True) > 0, (p - q).clamp(min=0), p),
        ),
        Misconception(
            "not-normalised-nor-fallen-back", "Your residual does not add up to 1: nothing can be drawn from it", 2,
            lambda p, q: (p - q).clamp(min=0),
        ),
        Misconception(
            "absolute", "You take |p − q|: tokens that the draft likes too much get something, too", 1,
            lambda p, q: torch.where((p - q).abs().sum(-1, keepdim=True) > 0, _divided((p - q).abs()), p),
        ),
        Misconception(
            "swapped", "You take q − p: that is what the draft has too much of", 1,
            lambda p, q: residual(q, p),
        ),
        Misconception(
            "softmax", "Softmax is for logits. These are shares already: divide by their sum", 2,
            lambda p, q: (p - q).clamp(min=0).softmax(-1),
        ),
        Misconception(
            "normalised-over-everything", "You divide by the sum of ALL rows; each row is a distribution of its own", 2,
            lambda p, q: torch.where(
                (p - q).abs().sum() > 0, (p - q).clamp(min=0) / (p - q).clamp(min=0).sum().clamp(min=1e-30), p
            ),
        ),
    ),
    _residual_cases,
)  # fmt: skip


# What a round yields


def speedup(alpha: float, k: int, c: float, v: float) -> float:
    """Tokens per round over the round's cost, in autoregressive steps."""
    emitted = k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)
    return emitted / (k * c + v)


def _speedup_cases(seed: int) -> list[ExerciseCase]:
    chance = torch.Generator().manual_seed(seed)
    cases = [(0.5, 1, 0.1, 1.0), (0.8, 4, 0.1, 1.5), (0.9, 8, 0.0, 1.2), (1.0, 4, 0.25, 1.0), (0.0, 3, 0.1, 1.2)]
    cases += [(1.0, 2, 0.1, 1.3), (0.6, 3, 0.2, 1.4)]
    for k in (2, 5, 12):
        alpha, c, v = torch.rand(3, generator=chance, dtype=torch.float64).tolist()
        cases.append((round(alpha, 3), k, round(c, 3), round(1 + v, 3)))
    return [ExerciseCase(case, "α = {}, k = {}, c = {}, v = {}".format(*case)) for case in cases]


def _emitted(alpha: float, k: int) -> float:
    return k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)


SPEEDUP = Exercise(
    "speedup",
    "What a round yields",
    "speedup",
    15,
    2,
    (
        "Token i is kept if all before it were: with probability αⁱ. And one token more is emitted, always.",
        "1 + α + … + αᵏ = (1 − αᵏ⁺¹)/(1 − α). At α = 1 that is k + 1.",
        "A round costs k draft steps of c each and one scoring step, v. Without speculation a token costs 1.",
    ),
    speedup,
    (
        Misconception(
            "bonus-left-out", "You count accepted tokens only. Every round emits one more", 1,
            lambda a, k, c, v: (_emitted(a, k) - 1) / (k * c + v),
        ),
        Misconception(
            "all-or-nothing", "You count k·α: but a token counts only if all before it were kept, too", 1,
            lambda a, k, c, v: (1 + k * a) / (k * c + v),
        ),
        Misconception(
            "one-term-short", "Your sum ends at αᵏ⁻¹: k tokens are drafted, and the sum has k + 1 terms", 2,
            lambda a, k, c, v: (k if a == 1 else (1 - a**k) / (1 - a)) / (k * c + v),
        ),
        Misconception(
            "drafting-is-free", "You forget what drafting costs: k steps of c", 3,
            lambda a, k, c, v: _emitted(a, k) / v,
        ),
        Misconception(
            "one-draft-step", "You pay for one draft step only; k tokens are drafted one after the other", 3,
            lambda a, k, c, v: _emitted(a, k) / (c + v),
        ),
        Misconception(
            "one-draft-step-more", "You pay for k + 1 draft steps: k tokens are drafted, in k steps of c", 3,
            lambda a, k, c, v: _emitted(a, k) / ((k + 1) * c + v),
        ),
        Misconception(
            "scoring-costs-one", "You let scoring cost 1 whatever v is", 3,
            lambda a, k, c, v: _emitted(a, k) / (k * c + 1),
        ),
        Misconception(
            "scored-one-by-one", "You pay v for each token: v is what scoring all k + 1 in one step costs", 3,
            lambda a, k, c, v: _emitted(a, k) / (k * c + v * (k + 1)),
        ),
        Misconception(
            "zero-by-zero", "At α = 1 you divide 0 by 0: all k tokens are kept there, and one more", 2,
            lambda a, k, c, v: (1 - a ** (k + 1)) / (1 - a) / (k * c + v),
        ),
        Misconception(
            "cost-over-gain", "You divide the wrong way round: more tokens for less cost is faster", 3,
            lambda a, k, c, v: (k * c + v) / _emitted(a, k),
        ),
    ),
    _speedup_cases,
)  # fmt: skip
