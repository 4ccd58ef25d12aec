"""Exercises on records: the acceptance rate from rounds, and the speedup from tokens and seconds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception
from specdec_lab.teaching.exercises.workload import recorded_rounds

Rounds = Sequence[Sequence[int]]
Runs = Sequence[Sequence[float]]


# The acceptance rate


def acceptance_rate(rounds: Rounds) -> float:
    """Accepted tokens divided by examined tokens: the accepted ones and the first rejected one of each round."""
    accepted = sum(accepted for _, accepted in rounds)
    examined = sum(min(accepted + 1, drafted) for drafted, accepted in rounds)
    return accepted / examined


def _round_cases(seed: int) -> list[ExerciseCase]:
    chance = np.random.default_rng(seed)
    some: list[list[tuple[int, int]]] = [
        [(4, 2)],
        [(4, 4)],
        [(3, 0), (3, 3)],
        [(4, 1), (8, 8), (2, 0)],
        [(2, 1), (6, 2), (3, 3)],
        [(0, 0), (2, 1)],
    ]
    for alpha in (0.3, 0.8):
        ks = chance.integers(0, 7, 6).tolist()
        accepted = (chance.random((6, 8)) < alpha).cumprod(1)
        some.append(
            [(5, int(accepted[0, :5].sum())), *((k, int(row[:k].sum())) for k, row in zip(ks, accepted, strict=True))]
        )
    cases = [ExerciseCase((rounds,), f"rounds {rounds}") for rounds in some]
    for draft in ("small", "medium", "large"):
        rounds = recorded_rounds(draft, 4)
        cases.append(
            ExerciseCase((rounds,), f"{len(rounds)} recorded rounds of the {draft} draft, k = 4", spelled=False)
        )
    return cases


def _over(
    count: Callable[[int, int], float], numerator: Callable[[int, int], float] = lambda d, a: a
) -> Callable[..., Any]:
    """The sum of `numerator` over all rounds, divided by the sum of `count`."""
    return lambda rounds: sum(numerator(d, a) for d, a in rounds) / sum(count(d, a) for d, a in rounds)


def _mean(share: Callable[[int, int], float]) -> Callable[..., float]:
    """The mean over all rounds that drafted something."""
    return lambda rounds: float(np.mean([share(d, a) for d, a in rounds if d]))


ACCEPTANCE = Exercise(
    "acceptance",
    "The acceptance rate",
    "acceptance_rate",
    10,
    2,
    (
        "In the round (4, 2), four tokens were drafted and two were accepted. Was the third one examined? "
        "Was the fourth?",
        "Each round examines its accepted tokens and the first rejected one, if there is one. Add up over "
        "all rounds before you divide.",
        "Σ accepted / Σ min(accepted + 1, drafted).",
    ),
    acceptance_rate,
    (
        Misconception(
            "accepted-over-drafted",
            "You divide by all drafted tokens. Tokens after a rejection are never examined, so your rate falls "
            "as k grows",
            1,
            _over(lambda d, a: d),
        ),
        Misconception(
            "rejection-in-every-round",
            "You count a rejected token in every round. If all drafted tokens are accepted, there is none",
            2,
            _over(lambda d, a: a + 1),
        ),
        Misconception(
            "mean-of-rounds",
            "You average the rates of the rounds, so a round with one examined token counts as much as a round "
            "with eight",
            2,
            _mean(lambda d, a: a / min(a + 1, d)),
        ),
        Misconception(
            "mean-of-accepted-over-drafted",
            "You average accepted / drafted over the rounds. Tokens after a rejection are never examined, and "
            "rounds differ in size",
            2,
            _mean(lambda d, a: a / d),
        ),
        Misconception(
            "accepted-per-round",
            "You return accepted tokens per round. The rate is a share of the examined TOKENS",
            3,
            _over(lambda d, a: 1),
        ),
        Misconception(
            "tokens-per-round",
            "You return emitted tokens per round. The rate is a share of the examined tokens",
            3,
            _over(lambda d, a: 1, lambda d, a: a + 1),
        ),
        Misconception(
            "emitted-over-drafted",
            "You count the token that every round adds. The target sampled it, so it was not examined",
            2,
            _over(lambda d, a: d, lambda d, a: a + 1),
        ),
        Misconception(
            "emitted-over-scored",
            "You count the token that the target adds. It scores k + 1 positions, but only drafted tokens are examined",
            2,
            _over(lambda d, a: d + 1, lambda d, a: a + 1),
        ),
        Misconception(
            "whole-rounds",
            "You count rounds in which all tokens were accepted. Count tokens instead",
            2,
            _over(lambda d, a: 1, lambda d, a: float(0 < d == a)),
        ),
        Misconception(
            "first-token-only",
            "You use only the first token of each round. All examined tokens count",
            2,
            _mean(lambda d, a: float(a > 0)),
        ),
        Misconception(
            "rejection-rate",
            "You return the share of examined tokens that were rejected. The acceptance rate is 1 minus this",
            3,
            lambda rounds: 1 - acceptance_rate(rounds),
        ),
    ),
    _round_cases,
)


# The speedup


def speedup_of(plain: Runs, speculative: Runs) -> float:
    """Tokens per second of the speculative runs, divided by those of the plain runs."""
    pace = [sum(tokens for tokens, _ in runs) / sum(seconds for _, seconds in runs) for runs in (plain, speculative)]
    return pace[1] / pace[0]


def _run_cases(seed: int) -> list[ExerciseCase]:
    chance = np.random.default_rng(seed)
    some: list[tuple[Any, Any]] = [
        ([(64, 2.0)], [(64, 1.0)]),
        ([(64, 1.6)], [(32, 0.5)]),
        ([(64, 1.0)], [(64, 1.25)]),
        ([(64, 1.6), (64, 1.6)], [(64, 0.8), (64, 1.6)]),
        ([(64, 1.6), (64, 3.2)], [(64, 0.8), (16, 0.8)]),
        ([(64, 1.6), (40, 0.8), (20, 0.5)], [(64, 0.9), (30, 0.4), (20, 0.4)]),
    ]
    for _ in range(2):
        tokens = chance.integers(8, 64, (2, 3)).tolist()
        seconds = chance.uniform(0.3, 1.5, (2, 3)).round(2).tolist()
        plain, fast = (list(zip(*runs, strict=True)) for runs in zip(tokens, seconds, strict=True))
        some.append((plain, fast))
    return [ExerciseCase(runs, "plain {}, speculative {}".format(*runs)) for runs in some]


def _paces(runs: Runs) -> list[float]:
    return [tokens / seconds for tokens, seconds in runs]


def _sum(runs: Runs, i: int) -> float:
    return float(sum(run[i] for run in runs))


SPEEDUP_OF = Exercise(
    "speedup_of",
    "The speedup of recorded runs",
    "speedup_of",
    5,
    1,
    (
        "One text ended early. What can you compare that does not depend on the lengths of the texts?",
        "Compare tokens per second. Add up all tokens and all seconds before you divide, because a mean "
        "over runs gives a short run as much weight as a long one.",
        "(Σ tokens / Σ seconds) of the speculative runs, divided by (Σ tokens / Σ seconds) of the plain runs.",
    ),
    speedup_of,
    (
        Misconception(
            "seconds-only",
            "You compare only the seconds. If a text ended early, fewer seconds are no speedup",
            1,
            lambda plain, fast: _sum(plain, 1) / _sum(fast, 1),
        ),
        Misconception(
            "inverted",
            "You divide plain by speculative. A speedup above 1 must mean that speculation is faster",
            3,
            lambda plain, fast: speedup_of(fast, plain),
        ),
        Misconception(
            "mean-of-ratios",
            "You average the speedups of the prompts, so short runs count as much as long ones",
            2,
            lambda plain, fast: float(np.mean(np.array(_paces(fast)) / np.array(_paces(plain)))),
        ),
        Misconception(
            "mean-of-paces",
            "You average the tokens per second of the runs, so short runs count as much as long ones",
            2,
            lambda plain, fast: float(np.mean(_paces(fast)) / np.mean(_paces(plain))),
        ),
        Misconception(
            "best-run",
            "You compare the fastest runs. Use all tokens and all seconds",
            2,
            lambda plain, fast: max(_paces(fast)) / max(_paces(plain)),
        ),
        Misconception(
            "first-run",
            "You compare only the first runs. Use all runs",
            2,
            lambda plain, fast: _paces(fast)[0] / _paces(plain)[0],
        ),
        Misconception(
            "gain",
            "You return the gain, which is the speedup minus 1. A speedup of 1 means equally fast",
            3,
            lambda plain, fast: speedup_of(plain, fast) - 1,
        ),
        Misconception(
            "difference",
            "You subtract the two speeds. A speedup is their ratio",
            3,
            lambda plain, fast: _sum(fast, 0) / _sum(fast, 1) - _sum(plain, 0) / _sum(plain, 1),
        ),
        Misconception(
            "pace-alone",
            "You return the speculative tokens per second. Divide them by the plain ones",
            3,
            lambda plain, fast: _sum(fast, 0) / _sum(fast, 1),
        ),
        Misconception(
            "seconds-per-token",
            "You return the seconds per speculative token. Divide the plain seconds per token by them",
            3,
            lambda plain, fast: _sum(fast, 1) / _sum(fast, 0),
        ),
    ),
    _run_cases,
)
