"""What chooses how many tokens to draft next, and what it is told to choose by: the rounds so far."""

import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.theory import Cost, predicted_speedup


@dataclass(frozen=True)
class Round:
    """One draft and verify, as one row saw it.

    drafted: the proposed token ids. accepted: how many of them the rule kept. emitted: the ids that entered the text:
    those and one more, or fewer where the generation ended inside the round. Seconds are of the whole batch.
    """

    drafted: tuple[int, ...]
    accepted: int
    emitted: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float


class Controller(Protocol):
    """Asked before each round; told after it what became of every row."""

    max_k: int

    def next_k(self) -> int:
        """Tokens to draft in the next round, 0…max_k. 0 is one autoregressive step."""
        ...

    def observe(self, rounds: list[Round]) -> None:
        """The round that ended, as each row saw it that was not finished before it."""
        ...


class FixedK:
    """The same k in every round."""

    def __init__(self, k: int):
        self.max_k = k

    def next_k(self) -> int:
        return self.max_k

    def observe(self, rounds: list[Round]) -> None:
        """Nothing to learn."""


class AdaptiveSpeculation:
    """One token more while 0.1 above the target, one fewer while 0.1 below it: the source text's heuristic as it is.

    It looks at the mean of accepted / proposed over the last 100 rounds, from the tenth on. Its set point moves with
    what it sets: at the same α, accepted / proposed = (α + … + αᵏ)/k falls as k grows (α = 0.8: 0.72 at k = 2, 0.42 at
    k = 8), so it finds the k at which a draft looks 70 % accepted, whatever a draft step costs, and never finds 0.
    The baseline to do better than. Rows of a batch are pooled. Raises SpecdecError.
    """

    def __init__(self, min_k: int = 2, max_k: int = 8, target_acceptance: float = 0.7):
        if not (is_whole(min_k) and is_whole(max_k) and 1 <= min_k <= max_k):
            raise SpecdecError(f"min_k={min_k!r:.80}, max_k={max_k!r:.80}: take whole numbers, 1 ≤ min_k ≤ max_k")
        if not is_number(target_acceptance) or not 0 <= target_acceptance <= 1:
            raise SpecdecError(f"target_acceptance={target_acceptance!r:.80}: takes a share, 0 … 1")
        self.min_k, self.max_k, self.target_acceptance = min_k, max_k, target_acceptance
        self.current_k = (min_k + max_k) // 2
        self.recent_acceptances: deque[float] = deque(maxlen=100)

    def update(self, num_accepted: int, num_proposed: int) -> None:
        """One round: how many of the proposed tokens, at least 1, were accepted."""
        if not (is_whole(num_accepted) and is_whole(num_proposed) and 0 <= num_accepted <= num_proposed > 0):
            raise SpecdecError(f"{num_accepted=!r:.40}, {num_proposed=!r:.40}: take 0 ≤ accepted ≤ proposed > 0")
        self.recent_acceptances.append(num_accepted / num_proposed)
        average = sum(self.recent_acceptances) / len(self.recent_acceptances)
        if len(self.recent_acceptances) >= 10 and average > self.target_acceptance + 0.1:
            self.current_k = min(self.max_k, self.current_k + 1)
        elif len(self.recent_acceptances) >= 10 and average < self.target_acceptance - 0.1:
            self.current_k = max(self.min_k, self.current_k - 1)

    def get_current_k(self) -> int:
        """Tokens to draft in the next round."""
        return self.current_k

    next_k = get_current_k

    def observe(self, rounds: list[Round]) -> None:
        if proposed := sum(len(one.drafted) for one in rounds):  # a text's last round may have no room for a draft
            self.update(sum(one.accepted for one in rounds), proposed)


CHANGE, EVIDENCE = 0.007, 0.7  # chance that α is another after a round; neighbouring tokens are alike: each tells less
EXPLORE, RESTING = 0.002, 0.005  # shares of the time for k that are not best, to know costs; and, resting at 0, α
LEAST, RECENT = 3, 60  # times that make a cost known, and times that are remembered
ALPHAS = np.linspace(0.004, 0.996, 26)
USES_BEFORE_RECORDING = 12  # as in `capture`, which would load PyTorch
PRIOR = 50  # judged tokens that a position needs to count as much as those before it


class CostModelSpeculation:
    """Drafts the k in 0 … max_k that promises the most tokens per second, by the α and the costs of the last rounds.

    α is believed by Bayes' rule from the tokens that were judged, up to the first rejection; every round takes the
    belief a little back to knowing nothing. Costs, per batch size: c from draft_seconds, v(n) from the rest of a round
    on `clock`, so with its overhead, in units of an autoregressive round. Another k than the best is tried the more
    rarely the more it loses. Only what happens inside rounds is timed: one controller serves a whole stream of
    generations. Rows are pooled. With costs given, as `predicted_speedup` takes them, nothing is timed, and equal
    rounds lead to equal choices. Raises SpecdecError.
    """

    def __init__(self, max_k: int = 8, *, c: float | None = None, v: Cost = 1.0, overhead: float = 0.0):
        if not is_whole(max_k) or max_k < 0:
            raise SpecdecError(f"max_k={max_k!r:.80}: takes a whole number ≥ 0")
        if c is None and (v != 1.0 or overhead != 0.0):
            raise SpecdecError(f"c=None, v={v!r:.40}, overhead={overhead!r:.40}: take all of the costs, or none")
        self.max_k, self.measures, self.clock = int(max_k), c is None, time.perf_counter
        self.belief = np.full(len(ALPHAS), 1 / len(ALPHAS))
        self._seen: list[Round] = []  # not yet believed
        self._reached = np.zeros((self.max_k, 2))  # by position: tokens judged, and kept
        self._tokens = self._expected()
        self._times: dict[int, _Times] = defaultdict(_Times)
        self._batch, self._began, self._rests, self._passed, self._rounds = 1, 0.0, False, 0, 0
        self._best, self._since = 0, 0
        self._last = [0] * (self.max_k + 1)  # the round that drafted so many last
        self._expect(*(_Times().costs(self.max_k) if c is None else (c, v, c)), overhead)

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
        if self._since % 4 == 0 or self._rounds < 64 or (k == 0 and self._seen):  # computing takes time too
            speedups = self.speedups.tolist()
            speedups[0] *= 1.02 if self.measures else 1.0  # sure, where what drafting promises is believed
            k = self._best = speedups.index(max(speedups))
            k = self._other(k, speedups) if self.measures or k == 0 else k
            self._since = 0 if k != self._best else self._since
        self._last[k] = self._rounds
        self._began = self.clock() if self.measures else 0.0
        return k

    def observe(self, rounds: list[Round]) -> None:
        n = max(len(one.drafted) for one in rounds)
        if self.measures:
            seconds, drafting = self.clock() - self._began, rounds[0].draft_seconds
            other_batch, self._batch = len(rounds) != self._batch, len(rounds)
            self._times[self._batch].add(n, drafting, seconds - drafting, self._rests)
            if other_batch or self._rounds % 16 == 0:
                self._expect(*self._nearest().costs(self.max_k))
        self._passed, self._rests = self._passed + 1, n == 0
        self._seen += rounds if n else []

    def _believe(self) -> None:
        """What was seen. What rounds did to α unseen comes in with the next look, which must not be certain then."""
        if self._seen:
            unknown = min(0.3, 1 - (1 - CHANGE) ** self._passed)
            self._reached *= 1 - unknown
            for one in self._seen:
                self._reached[: min(one.accepted + 1, len(one.drafted)), 0] += 1
                self._reached[: one.accepted, 1] += 1
            accepted = sum(one.accepted for one in self._seen)
            rejected = sum(one.accepted < len(one.drafted) for one in self._seen)
            logarithm = EVIDENCE * (accepted * np.log(ALPHAS) + rejected * np.log(1 - ALPHAS))
            belief = ((1 - unknown) * self.belief + unknown / len(ALPHAS)) * np.exp(logarithm - logarithm.max())
            self.belief, self._seen, self._passed = belief / belief.sum(), [], 0
            self._tokens = self._tokens if self._rounds % 16 >= 4 else self._expected()

    def _expected(self) -> np.ndarray:
        """Tokens of a round for every k and α, [max_k + 1, A].

        Some passages are easier than others, so behind an accepted token another is accepted more often than one α for
        all would have it: each position has its own share of α, and while it is little known that of the one before.
        """
        alpha = (self._reached[:, 1].sum() + 1) / (self._reached[:, 0].sum() + 2)
        tokens, reached, share = [np.ones(len(ALPHAS))], np.ones(len(ALPHAS)), 1.0
        for judged, kept in self._reached.tolist():
            share = (kept / alpha + PRIOR * share) / (judged + PRIOR)
            reached = reached * (ALPHAS * share).clip(max=1)
            tokens.append(tokens[-1] + reached)
        return np.array(tokens)

    def _expect(self, c: float, v: Cost, c_after_pause: float, overhead: float = 0.0) -> None:
        """What a round with k = 0 … max_k costs, in autoregressive ones, [max_k + 1]: its tokens at α = 0, 1, / S."""
        self._costs = np.array([1 / float(predicted_speedup(0.0, k, c, v, overhead)) for k in range(self.max_k + 1)])
        self._catching_up = max(0.0, c_after_pause - c)

    def _other(self, best: int, speedups: list[float]) -> int:
        """`best`, or the k that has waited longest beyond what its loss calls for, so that all cost what they may."""
        own = self._times[self._batch]
        if best and not own.knows(1) and (self._nearest() is own or own.uses.total() > 12):
            return 0 if self._since >= 2 else best
        if self._since % 4:
            return best
        others = [k for k in range(min(self.max_k, 2 * best + 2) + 1) if k != best]
        waited = {best: 1.0}  # in units of what its loss calls for
        for k in others:
            loss = self._costs[k] * (1 - speedups[k] / speedups[best]) + (0 if best else k * self._catching_up)
            due = loss / self._costs[best] / (EXPLORE if best else RESTING)
            waited[k] = (self._rounds - self._last[k]) / max(1.0, due * len(others) if best else due)
        return max(waited, key=waited.__getitem__)

    def _nearest(self) -> "_Times":
        """Times of this batch size, or while they are too few, of the nearest size that is known."""
        known = [size for size, times in self._times.items() if times.knows(1)] or [self._batch]
        return self._times[min(known, key=lambda size: abs(size - self._batch))]


class _Times:
    """Seconds that rounds of one batch size took: drafting one token; all else in a round that scores n tokens.

    Before a step is recorded (`capture`) it is slower, by a factor that the n tell which were timed before and after.
    """

    def __init__(self) -> None:
        self.drafting: tuple[deque[float], ...] = deque(maxlen=RECENT), deque(maxlen=RECENT)  # as usual, after a pause
        self.rest: dict[tuple[int, bool], deque[float]] = {}  # by n, and whether its step was recorded
        self.uses: Counter[int] = Counter()
        self.pace = 1.0  # how slow the machine is at present: other programs make it so for seconds at a time

    def knows(self, n: int) -> bool:
        return any(len(self.rest.get((n, recorded), ())) >= LEAST for recorded in (False, True))

    def add(self, drafted: int, drafting: float, rest: float, after_pause: bool) -> None:
        """A round. After a pause the draft read first what it had missed."""
        n = drafted + 1
        self.uses[n] += 1
        if drafted:
            self.drafting[after_pause].append(drafting / drafted / self.pace)
        if self.uses[n] != USES_BEFORE_RECORDING + 1:  # that round makes the record
            times = self.rest.setdefault((n, self.uses[n] > USES_BEFORE_RECORDING), deque(maxlen=RECENT))
            times.append(rest / self.pace)
            if len(times) > LEAST:
                self.pace *= min(1.02, max(0.98, times[-1] / sorted(times)[len(times) // 2]))

    def typical(self) -> dict[int, tuple[int, float]]:
        """How often each n that is known was timed, and the time."""
        known = {key: (len(times), _typical(times)) for key, times in self.rest.items() if len(times) >= LEAST}
        early, late = ({n: known[n, r] for n, r in known if r == recorded} for recorded in (False, True))
        slower = sorted(early[n][1] / late[n][1] for n in early.keys() & late.keys()) or [1.0]
        factor = slower[len(slower) // 2]
        return {n: (count, seconds / factor) for n, (count, seconds) in early.items()} | late

    def costs(self, max_k: int) -> tuple[float, Cost, float]:
        """c, v and c after a pause. An n ≥ 2 that was seldom timed leans on a line through those, the line on a guess.

        One token has a time of its own: on a CPU steps of several are other steps, and may even be faster.
        """
        known = self.typical()
        points = {n: point for n, point in known.items() if n > 1} or known or {1: (1, 1.0)}
        at, counts, times = np.array([(n, *point) for n, point in points.items()]).T
        n0, y0 = counts @ at / counts.sum(), counts @ times / counts.sum()
        slope = (counts @ ((at - n0) * (times - y0)) + 2 * 0.05 * y0) / (counts @ (at - n0) ** 2 + 2)
        seconds = [0.0]
        for n in range(1, max_k + 2):
            count, y = known.get(n, (0, 0.0))
            leaning = 0 if n == 1 and count else 30
            guess = float(count * y + leaning * (y0 + slope * (n - n0))) / (count + leaning)
            seconds.append(max(seconds[-1] if n > 2 else 1e-9, guess))
        c, after = (_typical(drafts) / seconds[1] if len(drafts) >= LEAST else 0.1 for drafts in self.drafting)
        return c, lambda n: seconds[n] / seconds[1], after


def _typical(times: deque[float]) -> float:
    """Below the median: what makes a round slow now and then has nothing to do with k."""
    return sorted(times)[3 * len(times) // 10]


def get_optimal_speculation_config(batch_size: int, sequence_length: float) -> dict[str, int | bool | str]:
    """The source text's four rules as they are: num_speculative_tokens, enable and the reason it gives.

    batch_size: sequences decoded together, ≥ 1. sequence_length: tokens of each, ≥ 0 (its caller passes characters).
    The last rule takes what is left: one sequence of 2,048 to 4,096 tokens is a 'Medium batch'. Raises SpecdecError.
    """
    if not is_whole(batch_size) or batch_size < 1:
        raise SpecdecError(f"batch_size={batch_size!r:.80}: takes a whole number ≥ 1")
    if not is_number(sequence_length) or not 0 <= sequence_length < float("inf"):
        raise SpecdecError(f"sequence_length={sequence_length!r:.80}: takes a number of tokens ≥ 0")
    if batch_size == 1 and sequence_length < 512:
        k, reason = 8, "Low batch, short context - maximum speculation benefit"
    elif batch_size <= 4 and sequence_length < 2048:
        k, reason = 4, "Small batch - speculation still beneficial"
    elif batch_size > 8 or sequence_length > 4096:
        k, reason = 0, "Large batch/context - batch processing more efficient"
    else:
        k, reason = 2, "Medium batch - conservative speculation"
    return {"num_speculative_tokens": k, "enable": k > 0, "reason": reason}


def as_controller(k: int | Controller) -> Controller:
    """A whole number means always that many. Raises SpecdecError for anything else that is no controller."""
    if is_whole(k) and k >= 0:
        return FixedK(int(k))
    if not isinstance(k, (int, type)) and {"next_k", "observe"} <= {*dir(k)} and is_whole(getattr(k, "max_k", None)):
        return k
    raise SpecdecError(
        f"k={k!r:.80}: takes a whole number ≥ 0 (tokens drafted per round), or a controller (max_k, next_k, observe)"
    )
