"""Exercise on adaptive k, scored by the expected speedup on streams of rounds.

Two measures reduce the influence of luck. A chosen k counts with its expected number of tokens, not with the number in
this play. And each stream is played several times with different rejections, and the speedups are averaged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from specdec_lab.teaching.exercises.exercise import (
    ChangedArguments,
    Exercise,
    ExerciseCase,
    Misconception,
    SubmissionFailed,
    shape_of,
    shown,
)
from specdec_lab.teaching.exercises.outcomes import BadRequest
from specdec_lab.teaching.exercises.workload import RECORDED
from specdec_lab.teaching.heuristics import AdaptiveSpeculation

MAX_K, ROUNDS, MEMORY = 8, 160, 40
PLAYS, HEURISTICS = 4, 24
"""Plays of a stream over which the speedup of an answer, and that of the heuristic, is averaged."""
SLACK = 0.01
"""Hidden streams require less, by this share of the heuristic's speedup, so that a controller that passes the public
streams also passes the hidden ones."""
History = Sequence[Sequence[int]]


def _gain(alpha: float, k: int, c: float, slope: float) -> float:
    return (1 - alpha ** (k + 1)) / (1 - alpha) / (k * c + 1 + slope * k)


def choose_k(history: History, c: float, slope: float) -> int:
    """Estimate α from recent rounds and return the k with the largest predicted speedup, or 1 now and then."""
    examined = sum(min(accepted + 1, drafted) for drafted, accepted in history[-20:])
    accepted = sum(accepted for _, accepted in history[-20:])
    alpha = (accepted + 1.4) / (examined + 2)
    alpha = min(alpha, 0.98)
    best = max(range(9), key=lambda k: (1 - alpha ** (k + 1)) / (1 - alpha) / (k * c + 1 + slope * k))
    if best == 0 and len(history) >= 15 and all(drafted == 0 for drafted, _ in history[-15:]):
        return 1
    return best


@dataclass(frozen=True)
class PlayedStream:
    """One play of a stream. ks: tokens drafted in each round. speedup: expected tokens per autoregressive step."""

    ks: tuple[int, ...]
    speedup: float


def _speedup(choose: Callable[..., Any], case: ExerciseCase) -> float:
    """The mean speedup over several plays of the case's stream."""
    alphas, c, slope, seed, minimum = case.arguments
    plays = [(alphas, c, slope, seed * PLAYS + i, minimum) for i in range(PLAYS)]
    return sum(play(choose, replace(case, arguments=arguments)).speedup for arguments in plays) / PLAYS


def play(choose: Callable[..., Any], case: ExerciseCase) -> PlayedStream:
    """Play a stream once, with the k that `choose` returns for each round. It receives the last 40 rounds."""
    alphas, c, slope, seed, _ = case.arguments
    u = np.random.default_rng(seed).random((len(alphas), MAX_K))
    played: list[list[int]] = []
    tokens, cost = 0.0, 0.0
    for alpha, row in zip(alphas, u, strict=True):
        given = [list(entry) for entry in played[-MEMORY:]]
        k = _asked(choose, given, c, slope)
        if given != played[-MEMORY:]:
            raise ChangedArguments("it changes its arguments")
        accepted = int((row[:k] < alpha).cumprod().sum())
        played.append([k, accepted])
        tokens += sum(alpha**i for i in range(k + 1))
        cost += k * c + 1 + slope * k
    return PlayedStream(tuple(drafted for drafted, _ in played), tokens / cost)


def _asked(choose: Callable[..., Any], history: list[list[int]], c: float, slope: float) -> int:
    """The k that `choose` returns for this history. Raises BadRequest if that is not a valid k."""
    all_accepted = bool(history) and 0 < history[-1][0] == history[-1][1]
    try:
        k = choose(history, c, slope)
    except (ZeroDivisionError, SubmissionFailed) as error:
        if all_accepted and "ZeroDivisionError" in f"{type(error).__name__} {error}":
            raise BadRequest(
                "you divide by 0 after a round in which every token was accepted, because your α is 1 there"
            ) from error
        raise
    if not _whole(k):
        message = shown(k) if isinstance(k, (int, float, str)) else shape_of(k)
        raise BadRequest(f"choose_k returns {message}; expected a whole number from 0 to {MAX_K}")
    return int(k)


def _whole(k: Any) -> bool:
    try:
        return not isinstance(k, str) and int(k) == k and 0 <= int(k) <= MAX_K
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


class Heuristic:
    """The threshold heuristic (`AdaptiveSpeculation`), as a function of the history."""

    def __init__(self) -> None:
        self._heuristic = AdaptiveSpeculation(min_k=2, max_k=MAX_K)
        self._rounds = 0

    def __call__(self, history: History, c: float, slope: float) -> int:
        if history:
            drafted, accepted = history[-1]
            self._heuristic.update(accepted, drafted)
        return self._heuristic.get_current_k()


def stream_cases(seed: int) -> list[ExerciseCase]:
    """Streams of rounds: their α and costs, and the required speedup as a multiple of the heuristic's.

    The required speedups allow for what no controller can know: α in the first rounds, and the moment at which a text
    changes. Eight correct controllers of different kinds exceeded all of them by at least 2 %, with each of 200 seeds.
    """
    half, quarter = ROUNDS // 2, ROUNDS // 4
    slack = SLACK if seed else 0.0

    def stream(words: str, alphas: list[float], c: float, minimum: float, slope: float = 0.1) -> ExerciseCase:
        return ExerciseCase((alphas, c, slope, seed, minimum - slack), words)

    useless, easy = [0.05] * half, [0.9] * ROUNDS
    return [
        stream("a useless draft, α = 0.05, c = 0.3", [0.05] * ROUNDS, 0.3, 1.52),
        stream("an easy text and a cheap draft: α = 0.9, c = 0.02, slope = 0.02", easy, 0.02, 1.025, 0.02),
        stream("an easy text, drafting and scoring cost a little more: c = 0.03, slope = 0.03", easy, 0.03, 0.99, 0.03),
        stream("a medium text with an expensive draft, α = 0.6, c = 0.4", [0.6] * ROUNDS, 0.4, 1.0),
        stream("easy, then useless", [*easy[:half], *useless], 0.1, 0.97),
        stream("easy, useless, easy", [*easy[:quarter], *useless[:quarter], *easy], 0.1, 0.96),
        stream("useless, then easy", [*useless, *easy], 0.1, 1.0),
        stream("a poor and expensive draft, α = 0.2, c = 0.5", [0.2] * ROUNDS, 0.5, 1.6),
        stream("scoring is expensive: α = 0.8, c = 0.02, slope = 0.4", [0.8] * ROUNDS, 0.02, 0.935, 0.4),
        stream("scoring is expensive: α = 0.7, c = 0.05, slope = 0.5", [0.7] * ROUNDS, 0.05, 0.935, 0.5),
        stream(
            "a recorded text, cheap to draft for: c = 0.05, slope = 0.02", [a / 100 for a in RECORDED], 0.05, 1.02, 0.02
        ),
    ]


@lru_cache
def _heuristic_speedup(alphas: tuple[float, ...], c: float, slope: float) -> float:
    cases = (ExerciseCase((alphas, c, slope, seed, 0.0)) for seed in range(HEURISTICS))
    return sum(play(Heuristic(), case).speedup for case in cases) / HEURISTICS


def _is_fast_enough(value: Any, right: Any, case: ExerciseCase) -> bool:
    """Whether this speedup reaches the required one."""
    alphas, c, slope, _, minimum = case.arguments
    return bool(float(value) > minimum * _heuristic_speedup(tuple(alphas), c, slope))


def _always(k: int) -> Callable[..., int]:
    return lambda history, c, slope: k


def _by_ratio(history: History, c: float, slope: float) -> int:
    """k in proportion to accepted / drafted, and never 0."""
    drafted = sum(d for d, _ in history[-10:]) or 1
    return max(1, min(MAX_K, round(MAX_K * sum(a for _, a in history[-10:]) / drafted))) if history else 4


def _by_alpha(history: History, estimate: Callable[[History], float], min_k: int, c: float, slope: float) -> int:
    return max(range(min_k, MAX_K + 1), key=lambda k: _gain(estimate(history), k, c, slope))


def _alpha(history: History) -> float:
    examined = sum(min(a + 1, d) for d, a in history[-20:])
    return min(0.98, (sum(a for _, a in history[-20:]) + 1.4) / (examined + 2))


def _without_a_limit(history: History) -> float:
    examined = sum(min(a + 1, d) for d, a in history[-10:])
    return sum(a for _, a in history[-10:]) / examined if examined else 0.7


def _of_drafted(history: History) -> float:
    return min(0.98, (sum(a for _, a in history[-20:]) + 1.4) / (sum(d for d, _ in history[-20:]) + 2))


ADAPTIVE = Exercise(
    "adaptive_k",
    "Adaptive k",
    "choose_k",
    30,
    4,
    (
        "Which numbers in the history tell you α? What can you learn about α in a round that drafts nothing?",
        "Estimate α from the tokens that were examined in recent rounds: the accepted ones, and the first "
        "rejected one of each round. Then compare all k from 0 to 8 by the speedup that your estimate "
        "predicts.",
        "While k is 0, nothing is examined, so your estimate stays the same. How can you notice that the "
        "text became easier?",
        "Predicted speedup: (1 − αᵏ⁺¹)/(1 − α) / (k·c + 1 + slope·k), with α = accepted / examined, kept "
        "below 1. Before anything was examined, start from a guess. After some rounds without a draft, "
        "draft one token.",
    ),
    choose_k,
    (
        Misconception(
            "always-four", "You always draft 4 tokens, which costs much time where the draft is useless", 2, _always(4)
        ),
        Misconception("always-two", "You always draft 2 tokens. Adapt k to the history", 2, _always(2)),
        Misconception("always-zero", "You never draft. That is autoregressive decoding", 2, _always(0)),
        Misconception(
            "always-eight", "You always draft 8 tokens, which is slow where they are rejected", 2, _always(8)
        ),
        Misconception(
            "follows-the-ratio",
            "You set k by accepted / drafted. This ratio falls as k grows, and your k never reaches 0",
            2,
            _by_ratio,
        ),
        Misconception(
            "never-zero",
            "Your smallest k is 1. Allow 0, for drafts that do not pay",
            2,
            lambda history, c, slope: _by_alpha(history, _alpha, 1, c, slope),
        ),
        Misconception(
            "never-looks-again",
            "After you chose 0, you never draft again, although the text may have become easier",
            3,
            lambda history, c, slope: 0 if history and history[-1][0] == 0 else choose_k(history, c, slope),
        ),
        Misconception(
            "empty-history",
            "You divide 0 by 0 if nothing was examined yet: before the first round, or after rounds with k = 0 only",
            1,
            lambda history, c, slope: round(8 * sum(a for _, a in history) / sum(d for d, _ in history)),
        ),
        Misconception(
            "alpha-of-one",
            "If everything was accepted, your α is 1, and (1 − αᵏ⁺¹)/(1 − α) is 0/0. Keep α below 1",
            4,
            lambda history, c, slope: _by_alpha(history, _without_a_limit, 0, c, slope),
        ),
        Misconception(
            "counts-unexamined",
            "You divide by all drafted tokens. Tokens after a rejection were never examined",
            2,
            lambda history, c, slope: _by_alpha(history, _of_drafted, 0, c, slope),
        ),
        Misconception(
            "forgets-c",
            "You leave out c. If the draft is expensive, the same α needs a smaller k",
            4,
            lambda history, c, slope: _by_alpha(history, _alpha, 0, 0.0, slope),
        ),
        Misconception(
            "forgets-slope",
            "You leave out the slope. If scoring one more token is expensive, a smaller k is better",
            4,
            lambda history, c, slope: choose_k(history, c, 0.0),
        ),
    ),
    stream_cases,
    otherwise=("Your controller is too slow on this stream. The numbers are its speedup and that of the reference"),
    agrees=_is_fast_enough,
    measure=_speedup,
)
