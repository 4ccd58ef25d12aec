"""Controllers choose k for the next round from the rounds so far."""

import math
import time
from collections import Counter, defaultdict
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.theory import Cost, predicted_speedup

if TYPE_CHECKING:
    from specdec_ref.decoding import Controller, Round


class FixedK:
    """The same k in every round."""

    def __init__(self, k: int):
        self.max_k = k

    def next_k(self) -> int:
        return self.max_k

    def observe(self, rounds: "list[Round]") -> None:
        """Nothing to learn."""


CHANGE, EVIDENCE = (
    0.005,
    0.5,
)  # chance that α is another after a round; neighbouring tokens are alike: each tells less
EXPLORE, RESTING = (
    0.003,
    0.015,
)  # shares of the time for k that are not best, to know costs; resting at 0, to know α
LEAST = 3  # rounds that make a cost known
NOISE, PACE, DRIFT = (
    0.1,
    0.06,
    0.001,
)  # of log seconds: of a round, and what changes from one to the next
ALPHAS = np.linspace(0.004, 0.996, 26)
ACCEPTED, REJECTED = np.log(ALPHAS), np.log(1 - ALPHAS)
USES_BEFORE_RECORDING = 12  # as in `capture`, which would load PyTorch
PRIOR = 20  # kept tokens that a position needs to count as much as those before it


class CostModelSpeculation:
    """Drafts the k in 0 … max_k that promises the most tokens per second, by the α and the costs of
    the last rounds.

    α is believed by Bayes' rule from the tokens that were judged, up to the first rejection; every
    round takes the belief a little back to knowing nothing. Costs, per batch size: draft_seconds,
    by how many were drafted, and the rest of a round on `clock`, so with its overhead, in units of
    an autoregressive round. Another k than the best is tried the more rarely the more it loses.
    Only what happens inside rounds is timed: one controller serves a whole stream of generations.
    Rows are pooled. With costs given, as `predicted_speedup` takes them, nothing is timed, and
    equal rounds lead to equal choices. Raises SpecdecError.
    """

    def __init__(
        self, max_k: int = 8, *, c: float | None = None, v: Cost = 1.0, overhead: float = 0.0
    ):
        if not is_whole(max_k) or max_k < 0:
            raise SpecdecError(f"max_k={max_k!r:.80}: takes a whole number ≥ 0")
        if c is None and (v != 1.0 or overhead != 0.0):
            raise SpecdecError(
                f"c=None, v={v!r:.40}, overhead={overhead!r:.40}: take all of the costs, or none"
            )
        self.max_k, self.measures, self.clock = int(max_k), c is None, time.perf_counter
        self.belief = np.full(len(ALPHAS), 1 / len(ALPHAS))
        self._seen: list[Round] = []  # not yet believed
        self._kept = np.zeros(
            (self.max_k, 2)
        )  # by position: tokens that should have been kept, and that were
        self._tokens = self._expected()
        self._times: dict[int, _Costs] = defaultdict(partial(_Costs, self.max_k))
        self._batch, self._began = 1, 0.0
        self._best = self._since = self._passed = self._rounds = self._rested = 0
        self._last = [0] * (self.max_k + 1)  # the round that drafted so many last
        self._expect(*(_Costs(self.max_k).costs() if c is None else (c, v, c)), overhead)

    @property
    def alpha(self) -> float:
        """The chance that a drafted token is accepted, as it is believed now."""
        self._believe()
        return float(self.belief @ ALPHAS)

    @property
    def speedups(self) -> np.ndarray:
        """What is expected now of k = 0 … max_k, against k = 0, [max_k + 1]."""
        self._believe()
        return np.asarray(self._tokens @ self.belief / self._costs)

    def next_k(self) -> int:
        self._since, self._rounds, k = self._since + 1, self._rounds + 1, self._best
        looking = (
            self._seen and self._rounds - self._rested < 8
        )  # at a draft that rested: each round tells much
        if self._since % 4 == 0 or self._rounds < 64 or looking:  # computing takes time too
            speedups = self.speedups.tolist()
            speedups[0] *= (
                1.02 if self.measures else 1.0
            )  # sure, where what drafting promises is believed
            k = self._best = speedups.index(max(speedups))
            k = self._other(k, speedups) if self.measures or k == 0 else k
            self._since = 0 if k != self._best else self._since
        self._last[k] = self._rounds
        self._began = self.clock() if self.measures else 0.0
        return k

    def observe(self, rounds: "list[Round]") -> None:
        n = max(len(one.drafted) for one in rounds)
        if self.measures:
            seconds, drafting = self.clock() - self._began, rounds[0].draft_seconds
            other_batch, self._batch = len(rounds) != self._batch, len(rounds)
            reads_up = self._rounds - self._rested == 1 or other_batch
            self._times[self._batch].add(n, drafting, seconds - drafting, reads_up)
            if other_batch or self._rounds % 32 == 0:
                self._expect(*self._nearest().costs())
        self._passed, self._rested = self._passed + 1, self._rested if n else self._rounds
        self._seen += rounds if n else []

    def _believe(self) -> None:
        """What was seen. What rounds did to α unseen comes in with the next look, which must not be
        certain then."""
        if self._seen:
            unknown = min(0.3, 1 - (1 - CHANGE) ** self._passed)
            belief = (1 - unknown) * self.belief + unknown / len(ALPHAS)
            reached = belief @ np.vander(ALPHAS, self.max_k + 1, increasing=True)
            self._kept *= 1 - unknown
            for one in self._seen:
                judged = min(one.accepted + 1, len(one.drafted))
                self._kept[:judged, 0] += reached[1 : judged + 1] / reached[:judged]
                self._kept[: one.accepted, 1] += 1
            accepted = sum(one.accepted for one in self._seen)
            rejected = sum(one.accepted < len(one.drafted) for one in self._seen)
            logarithm = EVIDENCE * (accepted * ACCEPTED + rejected * REJECTED)
            belief *= np.exp(logarithm - logarithm.max())
            self.belief, self._seen, self._passed = belief / belief.sum(), [], 0
            self._tokens = self._tokens if self._rounds % 16 >= 4 else self._expected()

    def _expected(self) -> np.ndarray:
        """Tokens of a round for every k and α, [max_k + 1, A].

        Some passages are easier, so behind an accepted token another is accepted more often than
        one α for all would have it: each position has a factor, kept over believed, and while it is
        little known that of the one before.
        """
        tokens, reached, factor = [np.ones(len(ALPHAS))], np.ones(len(ALPHAS)), 1.0
        for expected, kept in self._kept.tolist():
            factor = (kept + PRIOR * factor) / (expected + PRIOR)
            reached = reached * (ALPHAS * factor).clip(max=1)
            tokens.append(tokens[-1] + reached)
        return np.array(tokens)

    def _expect(self, c: float, v: Cost, c_reading_up: float, overhead: float = 0.0) -> None:
        """What a round with k = 0 … max_k costs, in autoregressive ones, [max_k + 1]: its tokens at
        α = 0, 1, / S."""
        self._costs = np.array(
            [1 / float(predicted_speedup(0.0, k, c, v, overhead)) for k in range(self.max_k + 1)]
        )
        self._catching_up = max(0.0, c_reading_up - c)

    def _other(self, best: int, speedups: list[float]) -> int:
        """`best`, or the k that has waited longest beyond what its loss calls for, so that all cost
        what they may."""
        own = self._times[self._batch]
        if best and own.uses[1] < LEAST and (self._nearest() is own or own.uses.total() > 12):
            return 0 if self._since >= 2 else best
        if self._since % 4:
            return best
        others = [k for k in range(min(self.max_k, 2 * best + 1) + 1) if k != best]
        waited = {best: 1.0}  # in units of what its loss calls for
        for k in others:
            loss = self._costs[k] * (1 - speedups[k] / speedups[best]) + (
                0 if best else k * self._catching_up
            )
            due = loss / self._costs[best] / (EXPLORE if best else RESTING)
            waited[k] = (self._rounds - self._last[k]) / max(
                1.0, due * len(others) if best else due
            )
        return max(waited, key=waited.__getitem__)

    def _nearest(self) -> "_Costs":
        """Times of this batch size, or of the nearest known one while they are too few."""
        known = [size for size, times in self._times.items() if times.uses[1] >= LEAST] or [
            self._batch
        ]
        return self._times[min(known, key=lambda size: abs(size - self._batch))]


class _Costs:
    """What rounds of one batch size take, told apart from the pace of the machine, which changes
    all the time.

    A Kalman filter of log seconds. Its state: a round that scores one token, at the present pace;
    and as factors of that, constant but for a slow drift: a step before it is recorded (`capture`);
    drafting one token where the draft reads first what it missed, which is another length each
    time; drafting 1, 2 … tokens, the first of which costs most, as the target had the processor's
    caches meanwhile; all else in a round that scores 1 (no factor), 2, 3 … tokens. Rounds that
    follow each other are at about one pace, so they tell what k cost against each other, however
    long ago k = 0 was timed. A great surprise is a jump of the pace: other programs make it, k does
    not. What was not timed yet lies on a smooth curve through the others.
    """

    def __init__(self, max_k: int) -> None:
        self.max_k = max_k
        self.uses: Counter[int] = Counter()
        self._timed: list[tuple[int, float, float, bool, bool]] = []  # not yet learned from
        k, beyond = (
            np.log(np.arange(1, max_k + 1)),
            np.arange(max_k),
        )  # drafted tokens; scored ones beyond two
        self.mean = np.array(
            [0.0, *np.log([1.5, 0.3]), *(np.log(0.1) + 0.8 * k), 0.0, *(0.1 + 0.04 * beyond)]
        )
        self.spread = np.diag([1e4, 0.3**2, 1.0, *(0.0 * k), 0.0, *(0.0 * k)])
        steps = np.minimum.outer(beyond, beyond)
        self.spread[3 : 3 + max_k, 3 : 3 + max_k] = (
            0.7**2 + 0.15**2 * np.outer(k, k) + 0.03**2 * steps
        )
        self.spread[4 + max_k :, 4 + max_k :] = (
            0.2**2 + 0.07**2 * np.outer(beyond, beyond) + 0.02**2 * steps
        )
        self.drift = np.array([PACE, DRIFT, 0.1, *[DRIFT] * max_k, 0.0, *[DRIFT] * max_k]) ** 2

    def add(self, drafted: int, drafting: float, rest: float, reads_up: bool) -> None:
        """A round. reads_up: the draft read first what it had missed."""
        uses = self.uses[drafted + 1] = self.uses[drafted + 1] + 1
        if uses != USES_BEFORE_RECORDING + 1:  # that round makes the record
            self._timed.append((drafted, drafting, rest, reads_up, uses <= USES_BEFORE_RECORDING))

    def costs(self) -> tuple[float, Cost, float]:
        """c, v and c where the draft reads up, as `_expect` takes them: all of a round's cost is in
        v here, c is 0."""
        for drafted, drafting, rest, reads_up, early in self._timed:
            self.spread.ravel()[:: len(self.mean) + 1] += self.drift
            self._learn(rest, 3 + self.max_k + drafted, early)
            if drafted:
                self._learn(*((drafting / drafted, 2) if reads_up else (drafting, 2 + drafted)))
        self._timed = []
        (after, *drafting), scoring = (
            np.exp(x).tolist() for x in np.split(self.mean[2:], [1 + self.max_k])
        )
        v = [
            1.0,
            1.0,
            *map(sum, zip(drafting, accumulate(scoring[1:], max), strict=True)),
        ]  # no less for more
        return 0.0, v.__getitem__, after - drafting[0] if drafting else 0.0

    def _learn(self, seconds: float, part: int, early: bool = False) -> None:
        """Seconds whose logarithm is the pace and this part of the state, and noise."""
        covariance = self.spread[0] + self.spread[part] + early * self.spread[1]
        variance = NOISE**2 + float(covariance[0] + covariance[part] + early * covariance[1])
        surprise = math.log(max(seconds, 1e-9)) - float(
            self.mean[0] + self.mean[part] + early * self.mean[1]
        )
        jump = surprise**2 if surprise**2 > 4 * variance else 0.0
        self.spread[0, 0] += jump
        covariance[0] += jump
        variance += (
            jump + NOISE**2 / 2 * surprise**2 / variance
        )  # tails are heavy: what surprises more says less
        self.mean += covariance * (surprise / variance)
        self.spread -= covariance[:, None] * (covariance / variance)


def as_controller(k: "int | Controller") -> "Controller":
    """A whole number means always that many. Raises SpecdecError for anything else that is no
    controller."""
    if is_whole(k) and k >= 0:
        return FixedK(int(k))
    if (
        not isinstance(k, (int, type))
        and {"next_k", "observe"} <= {*dir(k)}
        and is_whole(getattr(k, "max_k", None))
    ):
        return k
    raise SpecdecError(
        f"k={k!r:.80}: takes a whole number ≥ 0 (tokens drafted per round), "
        "or a controller (max_k, next_k, observe)"
    )
