"""Exercises on the rule and its yield: accept or reject, the residual, the expected speedup of a round."""

from typing import Any

import torch
from torch import Tensor

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception


def _random(seed: int, *shape: int) -> Tensor:
    """Random distributions over the last dimension, far from uniform."""
    chance = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(*shape, generator=chance, dtype=torch.float64)).softmax(-1)


# Accept or reject


def accepts(p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """Whether each drafted token is accepted."""
    return u < p / q


def _accept_cases(seed: int) -> list[ExerciseCase]:
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
    "Accept or reject",
    "accepts",
    10,
    1,
    (
        "If the target finds a token at least as likely as the draft did, should it ever be rejected? And"
        " if p is half of q, how often should it be accepted?",
        "If u is uniform in [0, 1), then u < x is true with probability x. To see why it is '<' and not "
        "'<=', try u = 0 and p = 0. Each token is decided by its own p, q and u.",
        "Each token is accepted with probability min(1, p/q).",
    ),
    accepts,
    (
        Misconception(
            "at-most",
            "You also accept at u = p/q. With u = 0, this accepts a token with p = 0, which the target never emits",
            2,
            lambda p, q, u: u <= p / q,
        ),
        Misconception(
            "inverted",
            "You compare u with q/p. The acceptance probability grows with the target's probability: it is p/q",
            3,
            lambda p, q, u: u < q / p,
        ),
        Misconception(
            "ignores-q",
            "You compare u with p alone. The draft sampled the token with probability q, so divide p by q",
            1,
            lambda p, q, u: u < p,
        ),
        Misconception(
            "deterministic",
            "You accept only tokens with p ≥ q. A token with p < q must still be accepted with probability p/q",
            1,
            lambda p, q, u: p >= q,
        ),
        Misconception(
            "opposite",
            "You return True for rejected tokens. A token is accepted when u is BELOW p/q",
            2,
            lambda p, q, u: u >= p / q,
        ),
        Misconception(
            "squared",
            "You square the ratio. The acceptance probability is p/q itself",
            3,
            lambda p, q, u: u < (p / q) ** 2,
        ),
        Misconception(
            "half",
            "You compare p/q with a fixed threshold of one half. Compare it with u",
            2,
            lambda p, q, u: p / q > 0.5,
        ),
        Misconception(
            "cumulative",
            "You reject every token after the first rejection. In this exercise, each token is decided independently",
            2,
            lambda p, q, u: (u < p / q).long().cumprod(0).bool(),
        ),
    ),
    _accept_cases,
)


# The residual


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(0, p − q), normalized over the last dimension; p in a row in which the two are equal."""
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
        "Accepted tokens already produce a part of p. How large is this part for each token, and what is missing?",
        "Only tokens with p > q are missing something. Divide each row by its own sum (`keepdim=True`). "
        "Where p = q, that sum is 0, so choose row by row what to return (`torch.where`).",
        "max(0, p − q) / Σ max(0, p − q), with the sum over the last dimension. Where the sum is 0, the residual is p.",
    ),
    residual,
    (
        Misconception(
            "target",
            "You return p. Accepted tokens already produce a part of p, so this part is counted twice. Return"
            " only the rest",
            1,
            lambda p, q: p,
        ),
        Misconception(
            "nan-where-equal",
            "Where p = q, you divide 0 by 0. Rounding can reject a token even there, so return p",
            2,
            lambda p, q: _divided((p - q).clamp(min=0)),
        ),
        Misconception(
            "zeros-where-equal",
            "Where p = q, you return zeros, and nothing can be sampled from zeros. Return p there",
            3,
            lambda p, q: _divided((p - q).clamp(min=0)).nan_to_num(0.0),
        ),
        Misconception(
            "uniform-where-equal",
            "Where p = q, you make all tokens equally likely. Return the target's p there",
            3,
            lambda p, q: _divided((p - q).clamp(min=0)).nan_to_num(1 / p.shape[-1]),
        ),
        Misconception(
            "all-rows-at-once",
            "You return p only if ALL rows are equal. Decide for each row separately",
            2,
            lambda p, q: p if torch.equal(p, q) else _divided((p - q).clamp(min=0)),
        ),
        Misconception(
            "not-normalized",
            "Your residual does not sum to 1, so nothing can be sampled from it",
            2,
            lambda p, q: torch.where((p - q).abs().sum(-1, keepdim=True) > 0, (p - q).clamp(min=0), p),
        ),
        Misconception(
            "not-normalized-no-fallback",
            "Your residual does not sum to 1, so nothing can be sampled from it",
            2,
            lambda p, q: (p - q).clamp(min=0),
        ),
        Misconception(
            "absolute",
            "You take |p − q|. This also gives probability to tokens that the draft samples too often",
            1,
            lambda p, q: torch.where((p - q).abs().sum(-1, keepdim=True) > 0, _divided((p - q).abs()), p),
        ),
        Misconception(
            "swapped",
            "You take q − p, the part by which the draft exceeds the target. Take p − q",
            1,
            lambda p, q: residual(q, p),
        ),
        Misconception(
            "softmax",
            "You apply softmax, which is for logits. These are probabilities already, so divide them by their sum",
            2,
            lambda p, q: (p - q).clamp(min=0).softmax(-1),
        ),
        Misconception(
            "normalized-over-everything",
            "You divide by the sum over ALL rows. Each row is a distribution of its own",
            2,
            lambda p, q: torch.where(
                (p - q).abs().sum() > 0, (p - q).clamp(min=0) / (p - q).clamp(min=0).sum().clamp(min=1e-30), p
            ),
        ),
    ),
    _residual_cases,
)


# What a round yields


def speedup(alpha: float, k: int, c: float, v: float) -> float:
    """Expected tokens per round, divided by the cost of a round in autoregressive steps."""
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
        "Under which condition is drafted token i emitted, and how likely is that? How many tokens does a"
        " round emit if its first drafted token is rejected?",
        "Drafted token i is emitted if all drafted tokens up to i are accepted. Every round emits one "
        "more token. Divide the expected number of tokens by the cost of a round, which is k draft steps "
        "and one scoring step.",
        "(1 + α + … + αᵏ) / (k·c + v). The sum equals (1 − αᵏ⁺¹)/(1 − α), and k + 1 at α = 1.",
    ),
    speedup,
    (
        Misconception(
            "bonus-left-out",
            "You count accepted tokens only. Every round emits one more token",
            1,
            lambda a, k, c, v: (_emitted(a, k) - 1) / (k * c + v),
        ),
        Misconception(
            "all-or-nothing",
            "You count k·α accepted tokens. A token is emitted only if all tokens before it were accepted too",
            1,
            lambda a, k, c, v: (1 + k * a) / (k * c + v),
        ),
        Misconception(
            "one-term-short",
            "Your sum ends at αᵏ⁻¹. With k drafted tokens, it has k + 1 terms and ends at αᵏ",
            3,
            lambda a, k, c, v: (k if a == 1 else (1 - a**k) / (1 - a)) / (k * c + v),
        ),
        Misconception(
            "drafting-is-free",
            "You leave out the cost of drafting: k steps of c each",
            2,
            lambda a, k, c, v: _emitted(a, k) / v,
        ),
        Misconception(
            "one-draft-step",
            "You count one draft step. Drafting k tokens takes k steps, one after the other",
            2,
            lambda a, k, c, v: _emitted(a, k) / (c + v),
        ),
        Misconception(
            "one-draft-step-more",
            "You count k + 1 draft steps. Drafting k tokens takes k steps of c each",
            2,
            lambda a, k, c, v: _emitted(a, k) / ((k + 1) * c + v),
        ),
        Misconception(
            "scoring-costs-one",
            "You let scoring cost 1. Its cost is v",
            2,
            lambda a, k, c, v: _emitted(a, k) / (k * c + 1),
        ),
        Misconception(
            "scored-one-at-a-time",
            "You pay v for each token. v is the cost of scoring all k + 1 tokens in one step",
            2,
            lambda a, k, c, v: _emitted(a, k) / (k * c + v * (k + 1)),
        ),
        Misconception(
            "zero-by-zero",
            "At α = 1, you divide 0 by 0. All k tokens are accepted there, so the round emits k + 1",
            3,
            lambda a, k, c, v: (1 - a ** (k + 1)) / (1 - a) / (k * c + v),
        ),
        Misconception(
            "cost-over-gain",
            "You divide cost by tokens. The speedup is tokens divided by cost",
            2,
            lambda a, k, c, v: (k * c + v) / _emitted(a, k),
        ),
    ),
    _speedup_cases,
)
