"""8.1.3: adapt k, judged by the speedup on streams of rounds. Luck has little part in it: of a k that was chosen what
counts is the tokens that it yields on average, not those that it happened to yield."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from specdec_ref.control import AdaptiveSpeculation
from specdec_ref.teaching.checks.exercise import (
    Case,
    ChangedArguments,
    Exercise,
    Misconception,
    StrangerFailed,
    shape_of,
    shown,
)
from specdec_ref.teaching.checks.outcomes import BadRequest
from specdec_ref.teaching.checks.workload import RECORDED

MAX_K, ROUNDS, MEMORY = 8, 160, 40
HEURISTICS = 24
"""Streams over which the heuristic's speedup is averaged."""
History = Sequence[Sequence[int]]


def _gain(alpha: float, k: int, c: float, slope: float) -> float:
    return (1 - alpha ** (k + 1)) / (1 - alpha) / (k * c + 1 + slope * k)


def choose_k(history: History, c: float, slope: float) -> int:
    """Estimate α from what was judged lately, take the k that promises most, and look again now and then."""
    judged = sum(min(accepted + 1, drafted) for drafted, accepted in history[-20:])
    accepted = sum(accepted for _, accepted in history[-20:])
    alpha = (accepted + 1.4) / (judged + 2)
    alpha = min(alpha, 0.98)
    best = max(range(9), key=lambda k: (1 - alpha ** (k + 1)) / (1 - alpha) / (k * c + 1 + slope * k))
    if best == 0 and len(history) >= 15 and all(drafted == 0 for drafted, _ in history[-15:]):
        return 1
    return best


@dataclass(frozen=True)
class Played:
    """ks: tokens drafted in each round. speedup: tokens that they yield on average, per autoregressive step."""

    ks: tuple[int, ...]
    speedup: float


def _speedup(choose: Callable[..., Any], case: Case) -> float:
    return play(choose, case).speedup


def play(choose: Callable[..., Any], case: Case) -> Played:
    """The recorded stream, with the k that is chosen for each round. The history holds the last 40 rounds."""
    alphas, c, slope, seed = case.arguments
    u = np.random.default_rng(seed).random((len(alphas), MAX_K))
    played: list[list[int]] = []
    tokens, cost = 0.0, 0.0
    for alpha, row in zip(alphas, u, strict=True):
        given = [list(entry) for entry in played[-MEMORY:]]
        try:
            k = choose(given, c, slope)
        except (ZeroDivisionError, StrangerFailed) as error:
            all_kept = played and 0 < played[-1][0] == played[-1][1]
            if all_kept and "ZeroDivisionError" in f"{type(error).__name__} {error}":
                raise BadRequest("after a round in which all was kept you divide by 0: α is 1 there") from error
            raise
        if given != played[-MEMORY:]:
            raise ChangedArguments("it writes into its arguments")
        if not _whole(k):
            said = shown(k) if isinstance(k, (int, float, str)) else shape_of(k)
            raise BadRequest(f"choose_k gave {said}: takes a whole number, 0 … {MAX_K}")
        accepted = int((row[: int(k)] < alpha).cumprod().sum())
        played.append([int(k), accepted])
        tokens += sum(alpha**i for i in range(int(k) + 1))
        cost += int(k) * c + 1 + slope * int(k)
    return Played(tuple(drafted for drafted, _ in played), tokens / cost)


def _whole(k: Any) -> bool:
    try:
        return not isinstance(k, str) and int(k) == k and 0 <= int(k) <= MAX_K
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


class Heuristic:
    """The source text's, as a function of the history."""

    def __init__(self) -> None:
        self._heard = AdaptiveSpeculation(min_k=2, max_k=MAX_K)
        self._rounds = 0

    def __call__(self, history: History, c: float, slope: float) -> int:
        if history:
            drafted, accepted = history[-1]
            self._heard.update(accepted, drafted)
        return self._heard.get_current_k()


def stream_cases(seed: int) -> list[Case]:
    """Streams of rounds, their α and costs."""
    half, quarter = ROUNDS // 2, ROUNDS // 4

    def stream(words: str, alphas: list[float], c: float, slope: float = 0.1) -> Case:
        return Case((alphas, c, slope, seed), words)

    return [
        stream("a useless draft, α = 0.05, c = 0.3", [0.05] * ROUNDS, 0.3),
        stream("an easy text, α = 0.9, c = 0.1", [0.9] * ROUNDS, 0.1),
        stream("a middling text with a dear draft, α = 0.6, c = 0.4", [0.6] * ROUNDS, 0.4),
        stream("easy, then useless", [0.9] * half + [0.05] * (ROUNDS - half), 0.1),
        stream("easy, useless, easy", [0.9] * quarter + [0.05] * quarter + [0.9] * ROUNDS, 0.1),
        stream("a recorded text, cheap to draft for: c = 0.05, slope = 0.02", [a / 100 for a in RECORDED], 0.05, 0.02),
    ]


@lru_cache
def _heuristic_speedup(alphas: tuple[float, ...], c: float, slope: float) -> float:
    cases = (Case((alphas, c, slope, seed)) for seed in range(HEURISTICS))
    return sum(_speedup(Heuristic(), case) for case in cases) / HEURISTICS


def _beats_the_heuristic(value: Any, right: Any, case: Case) -> bool:
    """Faster on the recorded text and where the draft is useless, and there as fast as no draft; slower nowhere, up to
    what an answer cannot know: the first rounds, and for a while that a text has changed."""
    alphas, c, slope, _ = case.arguments
    heuristic = _heuristic_speedup(tuple(alphas), c, slope)
    if max(alphas) < 0.1:
        return float(value) > max(0.88, 1.2 * heuristic)
    return float(value) > {1: 0.98, 2: 0.95}.get(len(set(alphas)), 1.03) * heuristic


def _always(k: int) -> Callable[..., int]:
    return lambda history, c, slope: k


def _by_ratio(history: History, c: float, slope: float) -> int:
    """k from accepted / drafted, never 0."""
    drafted = sum(d for d, _ in history[-10:]) or 1
    return max(1, min(MAX_K, round(MAX_K * sum(a for _, a in history[-10:]) / drafted))) if history else 4


def _by_alpha(history: History, estimate: Callable[[History], float], least: int, c: float, slope: float) -> int:
    return max(range(least, MAX_K + 1), key=lambda k: _gain(estimate(history), k, c, slope))


def _alpha(history: History) -> float:
    judged = sum(min(a + 1, d) for d, a in history[-20:])
    return min(0.98, (sum(a for _, a in history[-20:]) + 1.4) / (judged + 2))


def _of_last_draft(history: History) -> float:
    return next((a / min(a + 1, d) for d, a in reversed(history) if d), 0.7)


def _of_drafted(history: History) -> float:
    return min(0.98, (sum(a for _, a in history[-20:]) + 1.4) / (sum(d for d, _ in history[-20:]) + 2))


ADAPTIVE = Exercise(
    "adaptive_k",
    "8.1.3 Adaptive k",
    "choose_k",
    30,
    4,
    (
        "Estimate α by accepted / judged over the last rounds: judged are the accepted ones and the first rejected.",
        "Then take the k from 0 to 8 with the largest (1 − αᵏ⁺¹)/(1 − α) / (k·c + 1 + slope·k). 0 is one of them.",
        "Where you chose 0 you learn nothing more: after some rounds without a draft, try one token.",
    ),
    choose_k,
    (
        Misconception("always-four", "You always draft 4 tokens: a useless draft then costs you dearly", 2, _always(4)),
        Misconception("always-two", "You always draft 2 tokens: nothing adapts", 1, _always(2)),
        Misconception("always-zero", "You never draft: that is autoregressive decoding", 2, _always(0)),
        Misconception("always-eight", "You always draft 8 tokens: where they are rejected that is slow", 2, _always(8)),
        Misconception(
            "follows-the-ratio", "You set k by accepted / drafted, which falls as k grows, and never reaches 0", 1,
            _by_ratio,
        ),
        Misconception(
            "never-zero", "Your smallest k is 1: allow 0, for drafts that do not pay", 2,
            lambda history, c, slope: _by_alpha(history, _alpha, 1, c, slope),
        ),
        Misconception(
            "never-looks-again", "Once you chose 0 you never draft again, though the text may have become easy", 3,
            lambda history, c, slope: 0 if history and history[-1][0] == 0 else choose_k(history, c, slope),
        ),
        Misconception(
            "empty-history", "Before the first round there is no history, and where k was 0 nothing was judged: 0/0", 1,
            lambda history, c, slope: round(8 * sum(a for _, a in history) / sum(d for d, _ in history)),
        ),
        Misconception(
            "alpha-of-one", "Where all was kept your α is 1, and (1 − αᵏ⁺¹)/(1 − α) is 0/0: keep α below 1", 2,
            lambda history, c, slope: _by_alpha(history, _of_last_draft, 0, c, slope),
        ),
        Misconception(
            "counts-unjudged", "You divide by all drafted tokens: those behind a rejection were never judged", 1,
            lambda history, c, slope: _by_alpha(history, _of_drafted, 0, c, slope),
        ),
        Misconception(
            "forgets-c", "You ignore c: with a dear draft the same α wants a smaller k", 2,
            lambda history, c, slope: _by_alpha(history, _alpha, 0, 0.0, slope),
        ),
    ),
    stream_cases,
    otherwise="In this stream your controller is too slow; shown are its speedup, and the reference's",
    agrees=_beats_the_heuristic,
    measure=_speedup,
)  # fmt: skip
