"""8.1.1 and 8.1.2: what a record says: the acceptance rate from rounds, the speedup from tokens and seconds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception
from specdec_lab.teaching.exercises.workload import recorded_rounds

Rounds = Sequence[Sequence[int]]
Runs = Sequence[Sequence[float]]


# The acceptance rate


def acceptance_rate(rounds: Rounds) -> float:
    """Accepted tokens over judged ones. Judged are those that were accepted, and the first that was rejected."""
    accepted = sum(accepted for _, accepted in rounds)
    judged = sum(min(accepted + 1, drafted) for drafted, accepted in rounds)
    return accepted / judged


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
        kept = (chance.random((6, 8)) < alpha).cumprod(1)
        some.append([(5, int(kept[0, :5].sum())), *((k, int(row[:k].sum())) for k, row in zip(ks, kept, strict=True))])
    cases = [ExerciseCase((rounds,), f"rounds {rounds}") for rounds in some]
    for draft in ("small", "medium", "large"):
        rounds = recorded_rounds(draft, 4)
        cases.append(
            ExerciseCase((rounds,), f"{len(rounds)} recorded rounds of the {draft} draft, k = 4", spelled=False)
        )
    return cases


def _over(count: Callable[[int, int], float], kept: Callable[[int, int], float] = lambda d, a: a) -> Callable[..., Any]:
    """kept over counted, both summed over all rounds."""
    return lambda rounds: sum(kept(d, a) for d, a in rounds) / sum(count(d, a) for d, a in rounds)


def _mean(share: Callable[[int, int], float]) -> Callable[..., float]:
    """A mean over the rounds in which something was drafted."""
    return lambda rounds: float(np.mean([share(d, a) for d, a in rounds if d]))


ACCEPTANCE = Exercise(
    "acceptance",
    "8.1.2 Acceptance rates",
    "acceptance_rate",
    10,
    2,
    (
        "Take the round (4, 2): four tokens are drafted, two are kept, the third is rejected. Was the fourth judged?",
        "Judged are the accepted tokens and the first rejected one; where all were kept there is no rejected one.",
        "Sum over all rounds first, and divide once.",
    ),
    acceptance_rate,
    (
        Misconception(
            "accepted-over-drafted",
            "You divide by all drafted tokens: those behind a rejection were never judged, so that falls as k grows", 1,
            _over(lambda d, a: d),
        ),
        Misconception(
            "rejection-in-every-round", "You count a rejected token in every round; where all were kept there is none",
            2, _over(lambda d, a: a + 1),
        ),
        Misconception(
            "mean-of-rounds", "You average the rates of rounds: a round that judged one token then counts as much as "
            "one that judged eight", 3, _mean(lambda d, a: a / min(a + 1, d)),
        ),
        Misconception(
            "mean-of-accepted-over-drafted", "You average accepted / drafted over rounds: behind a rejection nothing "
            "was judged, and rounds differ in size", 1, _mean(lambda d, a: a / d),
        ),
        Misconception(
            "accepted-per-round", "You give accepted tokens per round; the rate is a share of the judged TOKENS", 2,
            _over(lambda d, a: 1),
        ),
        Misconception(
            "tokens-per-round", "You give tokens per round, the bonus among them; the rate is a share of judged tokens",
            2, _over(lambda d, a: 1, lambda d, a: a + 1),
        ),
        Misconception(
            "emitted-over-drafted", "You count the token that every round adds: the target drew it, nobody judged it",
            2, _over(lambda d, a: d, lambda d, a: a + 1),
        ),
        Misconception(
            "emitted-over-scored", "You count what the target added: k + 1 tokens are scored, but only the drafted "
            "ones judged", 2, _over(lambda d, a: d + 1, lambda d, a: a + 1),
        ),
        Misconception(
            "whole-rounds", "You count rounds in which all was kept; the rate is about tokens, one by one", 2,
            _over(lambda d, a: 1, lambda d, a: float(0 < d == a)),
        ),
        Misconception(
            "first-token-only", "You look at the first token of each round alone: all judged tokens count", 2,
            _mean(lambda d, a: float(a > 0)),
        ),
        Misconception(
            "rejection-rate", "That is the share of judged tokens that were rejected: 1 minus it is wanted", 2,
            lambda rounds: 1 - acceptance_rate(rounds),
        ),
    ),
    _round_cases,
)  # fmt: skip


# The speedup


def speedup_of(plain: Runs, speculative: Runs) -> float:
    """Tokens per second of the speculative runs over those of the plain ones."""
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
    "8.1.1 Its speedup",
    "speedup_of",
    5,
    1,
    (
        "Tokens per second: all tokens over all seconds. The speedup is the speculative pace over the plain one.",
        "Sum first, then divide: in a mean over runs a run of 8 tokens counts as much as one of 64.",
        "A text may end early, and then one of the two has fewer tokens: seconds alone say nothing.",
    ),
    speedup_of,
    (
        Misconception(
            "seconds-only", "You compare seconds alone: where one of the texts ended early, that is no gain", 3,
            lambda plain, fast: _sum(plain, 1) / _sum(fast, 1),
        ),
        Misconception(
            "upside-down", "You divide the wrong way round: above 1 means that speculation is faster", 1,
            lambda plain, fast: speedup_of(fast, plain),
        ),
        Misconception(
            "mean-of-ratios", "You average the speedups of prompts: short runs then count as much as long ones", 2,
            lambda plain, fast: float(np.mean(np.array(_paces(fast)) / np.array(_paces(plain)))),
        ),
        Misconception(
            "mean-of-paces", "You average the paces of runs: short runs then count as much as long ones", 2,
            lambda plain, fast: float(np.mean(_paces(fast)) / np.mean(_paces(plain))),
        ),
        Misconception(
            "best-run", "You compare the best runs: what is wanted is all tokens over all seconds", 2,
            lambda plain, fast: max(_paces(fast)) / max(_paces(plain)),
        ),
        Misconception(
            "first-run", "You compare the first runs only: all of them count", 2,
            lambda plain, fast: _paces(fast)[0] / _paces(plain)[0],
        ),
        Misconception(
            "gain", "That is how much faster it is; a speedup of 1 means as fast as without", 1,
            lambda plain, fast: speedup_of(plain, fast) - 1,
        ),
        Misconception(
            "difference", "You subtract the paces; a speedup is their ratio", 1,
            lambda plain, fast: _sum(fast, 0) / _sum(fast, 1) - _sum(plain, 0) / _sum(plain, 1),
        ),
        Misconception(
            "pace-alone", "That is the speculative pace; divide it by the plain one", 1,
            lambda plain, fast: _sum(fast, 0) / _sum(fast, 1),
        ),
        Misconception(
            "seconds-per-token", "That is the time of a speculative token; divide the time of a plain one by it", 1,
            lambda plain, fast: _sum(fast, 1) / _sum(fast, 0),
        ),
    ),
    _run_cases,
)  # fmt: skip
