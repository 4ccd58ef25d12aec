"""Exercise on when to speculate, checked against measured speedups in shown and in hidden cases."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception
from specdec_lab.teaching.heuristics import get_optimal_speculation_config

MEASURED = (
    (1, 64, 0.74, 0.15, 1.52, 1.34, 1.26, 1.78),
    (4, 64, 0.74, 0.14, 1.23, 1.39, 1.23, 1.37),
    (16, 64, 0.74, 0.14, 1.55, 1.94, 1.13, 1.11),
    (48, 64, 0.74, 0.14, 1.88, 2.16, 1.06, 0.95),
    (1, 256, 0.74, 0.13, 1.32, 1.48, 1.25, 1.41),
    (4, 256, 0.74, 0.15, 1.19, 1.31, 1.46, 1.49),
    (16, 256, 0.74, 0.14, 1.48, 1.85, 1.23, 1.27),
    (48, 256, 0.74, 0.12, 1.8, 2.03, 1.17, 1.19),
    (1, 512, 0.74, 0.15, 1.53, 1.4, 1.45, 1.69),
    (4, 512, 0.74, 0.15, 1.29, 1.41, 1.4, 1.38),
    (16, 512, 0.74, 0.13, 1.59, 1.98, 1.16, 1.14),
    (48, 512, 0.74, 0.12, 1.64, 2.0, 1.3, 1.33),
    (1, 64, 0.62, 0.11, 1.53, 1.51, 1.18, 1.15),
    (16, 64, 0.62, 0.1, 1.62, 1.97, 1.15, 0.97),
    (48, 64, 0.62, 0.09, 1.66, 2.24, 1.02, 0.87),
    (1, 256, 0.62, 0.11, 1.37, 1.26, 1.2, 1.48),
    (16, 256, 0.62, 0.1, 1.56, 1.89, 1.18, 1.03),
    (48, 256, 0.62, 0.09, 1.7, 2.01, 1.06, 0.96),
)
"""batch, context, α, c, v(3), v(5), and the measured speedups with k = 2 and k = 4, from `benchmarks/batch_policy.py`
with the medium and the small draft (2 cores, float32, torch 2.13, 2026-11-24)."""

SHOWN = (0, 2, 3, 5, 8, 12, 14, 16)
GOOD_ENOUGH = 0.88
"""Share of the best measured speedup that passes, because measurements vary by a few percent."""
SAMPLED = 4
"""Hidden cases for each k that are sampled for a seed."""
TELLING = (
    (16, 4096, 0.54, 0.54, 1.2, 1.4),
    (128, 64, 0.82, 0.36, 2.3, 3.4),
    (128, 1024, 0.89, 0.06, 1.4, 2.4),
    (8, 64, 0.49, 0.17, 1.8, 3.2),
    (16, 4096, 0.55, 0.04, 1.5, 2.7),
    (32, 4096, 0.41, 0.4, 2.0, 3.4),
    (64, 256, 0.91, 0.11, 1.0, 1.1),
    (4, 64, 0.88, 0.04, 1.3, 2.2),
    (32, 4096, 0.72, 0.1, 1.0, 1.4),
    (1, 4096, 0.86, 0.46, 1.3, 2.2),
    (1, 4096, 0.57, 0.18, 1.1, 1.7),
    (4, 64, 0.89, 0.55, 1.1, 1.6),
    (2, 1024, 0.84, 0.49, 1.2, 2.0),
    (16, 256, 0.91, 0.05, 1.2, 2.2),
    (4, 1024, 0.82, 0.02, 1.0, 1.7),
    (1, 256, 1.0, 0.3, 1.1, 1.4),
    (64, 256, 1.0, 0.5, 2.4, 4.2),
    (8, 1024, 1.0, 0.6, 2.0, 3.0),
)
"""Constructed cases. With them, any two known mistakes differ in at least two public cases, and about 20 other wrong
decisions differ from every known mistake. The best k is at least 15 % faster than the second best."""


def draft_tokens(batch: int, context: int, alpha: float, c: float, v3: float, v5: float) -> int:
    """The k of 0, 2 and 4 with the largest speedup by the formula."""
    speedups = {0: 1.0}
    for k, v in ((2, v3), (4, v5)):
        tokens = k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)
        speedups[k] = tokens / (k * c + v)
    return max(speedups, key=lambda k: speedups[k])


def _cost(k: int, c: float, v3: float, v5: float) -> float:
    return k * c + {0: 1.0, 2: v3, 4: v5}[k]


def _emitted(alpha: float, k: int) -> float:
    return sum(alpha**i for i in range(k + 1))


def _predicted(
    k: int, alpha: float, c: float, v3: float, v5: float, tokens: Callable[[float, int], float] = _emitted
) -> float:
    return tokens(alpha, k) / _cost(k, c, v3, v5)


def shown_cases() -> list[dict[str, float]]:
    """The cases that a learner sees, with their measured speedups."""
    names = "batch", "context", "alpha", "c", "v3", "v5", "speedup at k = 2", "speedup at k = 4"
    return [dict(zip(names, MEASURED[i], strict=True)) for i in SHOWN]


def _cases(seed: int) -> list[ExerciseCase]:
    """Public: the shown cases, and constructed ones with a clear answer. Hidden: the other measured cases, and sampled
    ones."""
    rest = [i for i in range(len(MEASURED)) if i not in SHOWN]
    if seed:
        return [*(_case(MEASURED[i]) for i in rest[seed % 2 :: 2]), *_sampled(seed)]
    made = partial(ExerciseCase, spelled=False)
    return [
        made((128, 256, 0.3, 0.3, 2.9, 4.8), "128 sequences, α = 0.3, scoring 5 tokens costs 4.8 steps"),
        made((1, 256, 0.95, 0.02, 1.0, 1.0), "one sequence, α = 0.95, drafting and scoring nearly free"),
        made((1, 256, 0.8, 0.5, 1.1, 1.2), "one sequence, α = 0.8, a draft step costs half a step of the target"),
        made((1, 256, 0.4, 0.7, 1.0, 1.05), "one sequence, α = 0.4, a draft step costs 0.7 steps of the target"),
        made((64, 256, 0.8, 0.05, 3.0, 5.0), "64 sequences, α = 0.8, scoring 5 tokens costs 5 steps"),
        *(_case(MEASURED[i]) for i in SHOWN),
        *(_case(row) for row in TELLING),
    ]


def _sampled(seed: int) -> list[ExerciseCase]:
    """Cases sampled from the seed: at least `SAMPLED` for each k, with each known mistake wrong in at least one.

    By the formula, the best k is at least 15 % faster than the others. The first case has α = 1. (Measured cases alone
    would not do as hidden cases, because they are listed in this file.)
    """
    chance = np.random.default_rng(seed)
    cases_by_k: dict[int, list[ExerciseCase]] = {0: [], 2: [], 4: []}
    unseen = [mistake.wrong for mistake in DECIDE.misconceptions]
    while unseen or any(len(cases) < SAMPLED for cases in cases_by_k.values()):
        row = _sampled_row(chance, perfect=not any(cases_by_k.values()))
        predicted = {k: _predicted(k, *row[2:]) for k in cases_by_k}
        second, best = sorted(predicted.values())[1:]
        k = max(predicted, key=lambda k: predicted[k])
        still_unseen = [wrong for wrong in unseen if _decides(wrong, row) == k]
        if best > 1.15 * second and (len(cases_by_k[k]) < SAMPLED or len(still_unseen) < len(unseen)):
            cases_by_k[k].append(_case(row))
            unseen = still_unseen
    return [case for cases in cases_by_k.values() for case in cases]


def _sampled_row(chance: np.random.Generator, perfect: bool) -> tuple[Any, ...]:
    """Random arguments of a case. perfect: α is 1."""
    alpha, c = round(chance.uniform(0.3, 0.95), 2), round(chance.uniform(0.02, 0.6), 2)
    v3 = round(chance.uniform(1, 2.5), 2)
    v5 = round(v3 * chance.uniform(1, 1.8), 2)
    return 2 ** int(chance.integers(8)), int(chance.integers(32, 4096)), 1.0 if perfect else alpha, c, v3, v5


def _decides(function: Callable[..., int], row: tuple[Any, ...]) -> int | None:
    try:
        return function(*row)
    except ZeroDivisionError:
        return None


def _case(row: tuple[float, ...]) -> ExerciseCase:
    words = "batch {:.0f}, context {:.0f}, α = {}, c = {}, v(3) = {}, v(5) = {}".format(*row[:6])
    return ExerciseCase((int(row[0]), int(row[1]), *row[2:6]), words)


def _good(value: Any, right: Any, case: ExerciseCase) -> bool:
    """Whether k is nearly as fast as the best measured k; without measurements, whether it is best by the formula."""
    try:
        k = int(value)
    except (TypeError, ValueError):
        return False
    if k not in (0, 2, 4) or k != value:
        return False
    for row in MEASURED:
        if (int(row[0]), int(row[1]), *row[2:6]) == case.arguments:
            speedups = {0: 1.0, 2: row[6], 4: row[7]}
            return speedups[k] >= GOOD_ENOUGH * max(speedups.values())
    return bool(k == right)


def _by_batch_and_context(batch: int, context: int, *_: float) -> int:
    k = int(get_optimal_speculation_config(batch, context)["num_speculative_tokens"])
    return min(4, k)


def _by_formula(tokens: Callable[[float, int], float] = _emitted, **fixed: float) -> Callable[..., int]:
    def choose(batch: int, context: int, alpha: float, c: float, v3: float, v5: float) -> int:
        known = {"alpha": alpha, "c": c, "v3": v3, "v5": v5} | fixed
        return max((0, 2, 4), key=lambda k: _predicted(k, **known, tokens=tokens))

    return choose


def _by_difference(batch: int, context: int, alpha: float, c: float, v3: float, v5: float) -> int:
    return max((0, 2, 4), key=lambda k: _emitted(alpha, k) - _cost(k, c, v3, v5))


DECIDE = Exercise(
    "decide",
    "When to speculate",
    "draft_tokens",
    25,
    3,
    (
        "Which inputs tell you what a round costs, and which tell you how many tokens it yields? Which "
        "inputs do neither?",
        "Compute the speedup of k = 2 and of k = 4, and compare both with 1, which is decoding without a "
        "draft. The batch size and the context act only through c, v3 and v5, and these are given.",
        "(1 + α + … + αᵏ) / (k·c + v), where v is v3 for k = 2 and v5 for k = 4.",
    ),
    draft_tokens,
    (
        Misconception("always-four", "You always draft 4 tokens, even if scoring them is expensive", 2, lambda *a: 4),
        Misconception(
            "always-two", "You always draft 2 tokens, even if they are not worth their cost", 2, lambda *a: 2
        ),
        Misconception("never", "You never speculate", 2, lambda *a: 0),
        Misconception(
            "batch-and-context",
            "You decide by batch size and context alone. The measurements contradict this",
            1,
            _by_batch_and_context,
        ),
        Misconception(
            "batch-size-alone",
            "You decide by the batch size alone. Use v3 and v5, which already contain its effect",
            1,
            lambda batch, *_: 4 if batch <= 16 else 0,
        ),
        Misconception(
            "bonus-left-out",
            "You count accepted tokens only. Every round emits one more token",
            3,
            _by_formula(lambda alpha, k: 1.0 if k == 0 else _emitted(alpha, k) - 1),
        ),
        Misconception(
            "one-term-more",
            "Your sum has one term too many. With k drafted tokens, it ends at αᵏ",
            3,
            _by_formula(lambda alpha, k: 1.0 if k == 0 else _emitted(alpha, k + 1)),
        ),
        Misconception(
            "difference",
            "You subtract the cost from the tokens. The speedup is tokens divided by cost",
            3,
            _by_difference,
        ),
        Misconception(
            "zero-by-zero",
            "At α = 1, you divide 0 by 0. All k tokens are accepted there, so the round emits k + 1",
            3,
            _by_formula(lambda alpha, k: (1 - alpha ** (k + 1)) / (1 - alpha)),
        ),
        Misconception(
            "drafting-is-free", "You leave out the cost of drafting: k steps of c each", 3, _by_formula(c=0.0)
        ),
        Misconception(
            "one-draft-step",
            "You count one draft step. Drafting k tokens takes k steps, one after the other",
            3,
            lambda batch, context, alpha, c, v3, v5: max(
                (0, 2, 4), key=lambda k: _predicted(k, alpha, c / max(k, 1), v3, v5)
            ),
        ),
        Misconception(
            "one-draft-step-more",
            "You count k + 1 draft steps. Drafting k tokens takes k steps of c each",
            3,
            lambda batch, context, alpha, c, v3, v5: max(
                (0, 2, 4), key=lambda k: _predicted(k, alpha, c * (k + 1) / max(k, 1), v3, v5)
            ),
        ),
        Misconception(
            "all-or-nothing",
            "You count k·α accepted tokens. A token is emitted only if all tokens before it were accepted too",
            3,
            _by_formula(lambda alpha, k: 1 + k * alpha),
        ),
        Misconception(
            "v3-for-both",
            "You use v3 for both. Scoring 5 tokens costs v5",
            3,
            lambda batch, context, alpha, c, v3, v5: draft_tokens(batch, context, alpha, c, v3, v3),
        ),
        Misconception(
            "v3-and-v5-swapped",
            "You swapped v3 and v5. k = 2 drafts 2 tokens and scores 3",
            3,
            lambda batch, context, alpha, c, v3, v5: draft_tokens(batch, context, alpha, c, v5, v3),
        ),
        Misconception(
            "scoring-costs-one",
            "You let scoring cost 1, however many tokens are scored. Its cost is v3 or v5",
            3,
            _by_formula(v3=1.0, v5=1.0),
        ),
        Misconception(
            "alpha-alone",
            "You decide by α alone. The costs of drafting and scoring matter too",
            1,
            lambda batch, context, alpha, *_: 4 if alpha > 0.7 else 0,
        ),
    ),
    _cases,
    agrees=_good,
)
