"""8.1.5: when to speculate, judged by what was measured, on cases that are shown and on others."""

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
"""batch, context, α, c, v(3), v(5), and the speedup that was measured with k = 2 and 4: `benchmarks/batch_policy.py`
with the middle draft and with the plain small one (2 cores, float32, torch 2.13, 2026-11-24)."""

SHOWN = (0, 2, 3, 5, 8, 12, 14, 16)
GOOD_ENOUGH = 0.88
"""Of the best that was measured: the measurements themselves scatter by some per cent."""
DRAWN = 4
"""Hidden cases for each k that are drawn anew for a seed."""
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
"""Made-up cases, searched so that any two known mistakes differ in two or more of all public ones, and each of some 20
other wrong decisions differs from every known mistake. The best k gains 15 % on the second, or more."""


def draft_tokens(batch: int, context: int, alpha: float, c: float, v3: float, v5: float) -> int:
    """The k of 0, 2, 4 that the formula promises most of."""
    speedups = {0: 1.0}
    for k, v in ((2, v3), (4, v5)):
        tokens = k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)
        speedups[k] = tokens / (k * c + v)
    return max(speedups, key=lambda k: speedups[k])


def _cost(k: int, c: float, v3: float, v5: float) -> float:
    return k * c + {0: 1.0, 2: v3, 4: v5}[k]


def _emitted(alpha: float, k: int) -> float:
    return sum(alpha**i for i in range(k + 1))


def _promised(
    k: int, alpha: float, c: float, v3: float, v5: float, tokens: Callable[[float, int], float] = _emitted
) -> float:
    return tokens(alpha, k) / _cost(k, c, v3, v5)


def shown_cases() -> list[dict[str, float]]:
    """Those that a learner may look at, with what was measured."""
    names = "batch", "context", "alpha", "c", "v3", "v5", "speedup at k = 2", "speedup at k = 4"
    return [dict(zip(names, MEASURED[i], strict=True)) for i in SHOWN]


def _cases(seed: int) -> list[ExerciseCase]:
    """Public: the shown ones, and some made up where the answer is beyond doubt. Hidden: the others, and some drawn."""
    rest = [i for i in range(len(MEASURED)) if i not in SHOWN]
    if seed:
        return [*(_case(MEASURED[i]) for i in rest[seed % 2 :: 2]), *_drawn(seed)]
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


def _drawn(seed: int) -> list[ExerciseCase]:
    """Cases that follow from the seed: `DRAWN` or more for each k, until every known mistake is wrong in one of them.

    By the formula the best k gains 15 % or more on the others. The first case has α = 1. (The measurements are no
    secret: they are listed above.)
    """
    chance = np.random.default_rng(seed)
    found: dict[int, list[ExerciseCase]] = {0: [], 2: [], 4: []}
    unseen = [mistake.wrong for mistake in DECIDE.misconceptions]
    while unseen or any(len(cases) < DRAWN for cases in found.values()):
        row = _drawn_row(chance, perfect=not any(found.values()))
        promised = {k: _promised(k, *row[2:]) for k in found}
        second, best = sorted(promised.values())[1:]
        k = max(promised, key=lambda k: promised[k])
        still_unseen = [wrong for wrong in unseen if _decides(wrong, row) == k]
        if best > 1.15 * second and (len(found[k]) < DRAWN or len(still_unseen) < len(unseen)):
            found[k].append(_case(row))
            unseen = still_unseen
    return [case for cases in found.values() for case in cases]


def _drawn_row(chance: np.random.Generator, perfect: bool) -> tuple[Any, ...]:
    """Arguments of a case; perfect: with α = 1."""
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
    """As fast as the best that was measured there, or nearly; where nothing was measured, as the formula says."""
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
        return max((0, 2, 4), key=lambda k: _promised(k, **known, tokens=tokens))

    return choose


def _by_difference(batch: int, context: int, alpha: float, c: float, v3: float, v5: float) -> int:
    return max((0, 2, 4), key=lambda k: _emitted(alpha, k) - _cost(k, c, v3, v5))


DECIDE = Exercise(
    "decide",
    "8.1.5 When to speculate",
    "draft_tokens",
    25,
    3,
    (
        "Compute the speedup of k = 2 and of k = 4: (1 − αᵏ⁺¹)/(1 − α) / (k·c + v(k + 1)), "
        "at α = 1 (k + 1) / (k·c + v(k + 1)). Without a draft it is 1.",
        "The batch size itself decides nothing: what it does to v decides, and you were given v.",
    ),
    draft_tokens,
    (
        Misconception("always-four", "You always draft 4 tokens, where scoring them is dear as well", 1, lambda *a: 4),
        Misconception("always-two", "You always draft 2 tokens, where they are not worth it as well", 1, lambda *a: 2),
        Misconception("never", "You never speculate", 1, lambda *a: 0),
        Misconception(
            "batch-and-context", "You decide by batch and context alone. The measurements say otherwise",
            2, _by_batch_and_context,
        ),
        Misconception(
            "batch-size-alone", "You decide by the batch size alone: what counts is what it does to v", 2,
            lambda batch, *_: 4 if batch <= 16 else 0,
        ),
        Misconception(
            "bonus-left-out", "You count accepted tokens only: each round emits one more", 1,
            _by_formula(lambda alpha, k: 1.0 if k == 0 else _emitted(alpha, k) - 1),
        ),
        Misconception(
            "one-term-more", "Your sum has a term too many: with k drafted tokens it ends at αᵏ", 1,
            _by_formula(lambda alpha, k: 1.0 if k == 0 else _emitted(alpha, k + 1)),
        ),
        Misconception(
            "difference", "You subtract the cost from the tokens; the speedup is tokens divided by cost", 1,
            _by_difference,
        ),
        Misconception(
            "zero-by-zero", "At α = 1 you divide 0 by 0: all k tokens are accepted there, and one more is emitted", 1,
            _by_formula(lambda alpha, k: (1 - alpha ** (k + 1)) / (1 - alpha)),
        ),
        Misconception(
            "drafting-is-free", "You forget what drafting costs: k steps of c", 1, _by_formula(c=0.0)
        ),
        Misconception(
            "one-draft-step", "You pay for one draft step only; k tokens are drafted one after the other", 1,
            lambda batch, context, alpha, c, v3, v5: max(
                (0, 2, 4), key=lambda k: _promised(k, alpha, c / max(k, 1), v3, v5)
            ),
        ),
        Misconception(
            "one-draft-step-more", "You pay for k + 1 draft steps: k tokens are drafted, in k steps of c", 1,
            lambda batch, context, alpha, c, v3, v5: max(
                (0, 2, 4), key=lambda k: _promised(k, alpha, c * (k + 1) / max(k, 1), v3, v5)
            ),
        ),
        Misconception(
            "all-or-nothing", "You count k·α: but a token counts only if all before it were accepted, too", 1,
            _by_formula(lambda alpha, k: 1 + k * alpha),
        ),
        Misconception(
            "v3-for-both", "You let scoring 5 tokens cost what scoring 3 costs: v5 is the cost of 5", 1,
            lambda batch, context, alpha, c, v3, v5: draft_tokens(batch, context, alpha, c, v3, v3),
        ),
        Misconception(
            "v-exchanged", "You exchanged v3 and v5: k = 2 drafts 2 tokens and scores 3", 1,
            lambda batch, context, alpha, c, v3, v5: draft_tokens(batch, context, alpha, c, v5, v3),
        ),
        Misconception(
            "scoring-costs-one", "You let scoring cost 1 however many tokens are scored: v3 and v5 are its cost", 1,
            _by_formula(v3=1.0, v5=1.0),
        ),
        Misconception(
            "alpha-alone", "You decide by α alone: what drafting and scoring cost decides as well", 2,
            lambda batch, context, alpha, *_: 4 if alpha > 0.7 else 0,
        ),
    ),
    _cases,
    agrees=_good,
)  # fmt: skip
