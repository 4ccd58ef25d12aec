"""Controllers choose k for the next round from the rounds so far."""

import time
from statistics import median
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
        """Do nothing: k is fixed."""


ALPHAS = np.linspace(0.01, 0.99, 25)
"""The acceptance rates that `CostModelSpeculation` considers."""

CHANGE = 0.005
"""Probability that α is sampled anew, uniformly from `ALPHAS`, from one round to the next."""

EVIDENCE = 0.5
"""Weight of one token as evidence. Neighboring tokens are alike, so they count less than
independent ones."""

REST = 24
"""While drafting does not pay, one token is drafted once in this many rounds, to notice when α
rises."""

SWEEPS = 5
"""Sweeps that time the costs of a batch size."""

SWEEP_AGAIN = 1000
"""Rounds after which a batch size is timed again."""


class CostModelSpeculation:
    """Chooses the k in 0 … max_k with the most expected tokens per second.

    It estimates two things while it decodes. The acceptance rate α has a posterior over `ALPHAS`:
    each accepted or rejected token updates it by Bayes' rule, and each round moves it a little
    towards uniform, since α changes with the text. The costs of rounds are timed (see
    `RoundCosts`), or given. One controller can serve many generations, one after the other. The
    rows of a batch are pooled.

    Block verification does not decide each token by itself. Then α is the rate that best explains
    how many tokens the rounds accepted. It grows slightly with k, so another k yields slightly more
    or fewer tokens than α predicts. In a tree, α is the rate at which a level has an accepted node.

    Args:
        max_k: the largest k to choose.
        c, v, overhead: costs in target steps, as `predicted_speedup` takes them. With c=None the
            controller times its rounds. With costs given it reads no clock, so that equal rounds
            lead to equal choices.

    Raises:
        SpecdecError: max_k or a cost is out of range, or only some of the costs are given.
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
        self.max_k = int(max_k)
        self.clock = time.perf_counter
        self.posterior = np.full(len(ALPHAS), 1 / len(ALPHAS))
        self.measures_costs = c is None
        self._given = _costs_of_theory(self.max_k, 0.0 if c is None else c, v, overhead)
        self._timed: dict[int, RoundCosts] = {}
        self._batch = 1
        self._rests = 0
        self._requested = 0
        self._began = 0.0
        powers = np.vander(ALPHAS, self.max_k + 1, increasing=True)
        self._tokens = powers.cumsum(1)  # [A, max_k + 1]: expected tokens for each α and k

    @property
    def alpha(self) -> float:
        """The mean of the posterior."""
        return float(self.posterior @ ALPHAS)

    @property
    def costs(self) -> np.ndarray:
        """The cost of a round with k = 0 … max_k, in autoregressive rounds, [max_k + 1]."""
        return self._round_costs().costs if self.measures_costs else self._given

    @property
    def speedups(self) -> np.ndarray:
        """The expected speedup of k = 0 … max_k over k = 0, [max_k + 1]."""
        speedups: np.ndarray = self.posterior @ self._tokens / self.costs
        return speedups

    def next_k(self) -> int:
        k = int(self.speedups.argmax())
        self._rests = 0 if k else self._rests + 1
        if self.measures_costs:
            to_time = self._round_costs().next_to_time(resting=k == 0)
            k = k if to_time is None else to_time
            self._began = self.clock()
        if self._rests and self._rests % REST == 0:
            k = min(1, self.max_k)
        self._requested = k
        return k

    def observe(self, rounds: "list[Round]") -> None:
        if self.measures_costs:
            seconds = self.clock() - self._began
            self._batch = len(rounds)
            num_drafted = max(row.depth for row in rounds)
            self._round_costs().add(self._requested, num_drafted, seconds)
        accepted = sum(row.accepted for row in rounds)
        rejected = sum(row.accepted < row.depth for row in rounds)
        prior = (1 - CHANGE) * self.posterior + CHANGE / len(ALPHAS)
        log_likelihood = accepted * np.log(ALPHAS) + rejected * np.log(1 - ALPHAS)
        weights = prior * np.exp(EVIDENCE * (log_likelihood - log_likelihood.max()))
        self.posterior = weights / weights.sum()

    def _round_costs(self) -> "RoundCosts":
        """The costs at this batch size. Sizes between two powers of two share them."""
        size = self._batch.bit_length()
        if size not in self._timed:
            self._timed[size] = RoundCosts(self.max_k)
        return self._timed[size]


class RoundCosts:
    """The cost of a round with k = 0 … max_k at one batch size, relative to a round with k = 0.

    A sweep requests k = 0, 1, 2, 4, 8 …, one round each, so that a change in the machine's speed
    affects all of them alike. A round may draft fewer tokens than requested: the text ends, or the
    drafter has no more to propose. So a time counts for the number of tokens that were drafted.
    After each sweep, a straight line through the medians gives the costs, since each further draft
    step costs the same and so does each further token to score.
    """

    def __init__(self, max_k: int):
        powers = [2**i for i in range(max_k.bit_length())]
        self.swept = sorted({0, *powers, max_k})
        self.costs = _costs_of_theory(max_k, c=0.1, v=1.0, overhead=0.05)  # until they are timed
        self._begin_sweeps()

    def _begin_sweeps(self) -> None:
        self._requests = dict.fromkeys(self.swept, 0)
        self._seconds: dict[int, list[float]] = {}  # number of drafted tokens → times
        self._rounds = 0

    def next_to_time(self, resting: bool) -> int | None:
        """The k of the next round of a sweep, or None outside a sweep.

        resting: drafting does not pay at present, so old costs are good enough.
        """
        if self._rounds >= SWEEP_AGAIN and not resting:
            self._begin_sweeps()
        k = min(self.swept, key=lambda k: self._requests[k])
        return k if self._requests[k] < SWEEPS else None

    def add(self, k: int, num_drafted: int, seconds: float) -> None:
        """Record the time of a round for which k was requested.

        A round with more than k tokens belongs to another request, and is ignored.
        """
        self._rounds += 1
        if k != self.next_to_time(resting=True) or num_drafted > k:
            return
        self._requests[k] += 1
        self._seconds.setdefault(num_drafted, []).append(seconds)
        if k == self.swept[-1]:
            self._fit()

    def _fit(self) -> None:
        """Fit the costs to the times so far.

        A number of tokens that was drafted too rarely is left out: a median of one or two times can
        be that of a slow round.
        """
        drafted = {n: seconds for n, seconds in self._seconds.items() if n > 0}
        if not drafted:
            return  # the drafter has proposed nothing yet
        enough = min(SWEEPS, max(map(len, drafted.values()))) / 2
        numbers = np.array(sorted(n for n, seconds in drafted.items() if len(seconds) >= enough))
        without = median(self._seconds[0])
        if without > 0:
            costs = [median(drafted[n]) / without for n in numbers]
            line = np.polyfit(numbers, costs, min(1, len(numbers) - 1))
            self.costs[1:] = np.polyval(line, np.arange(1, len(self.costs)))


def _costs_of_theory(max_k: int, c: float, v: Cost, overhead: float) -> np.ndarray:
    """Costs of rounds with k = 0 … max_k in target steps, [max_k + 1].

    At α = 0 a round yields one token, so its cost is 1/S.
    """
    speedups = [float(predicted_speedup(0.0, k, c, v, overhead)) for k in range(max_k + 1)]
    return 1 / np.array(speedups)


def as_controller(k: "int | Controller") -> "Controller":
    """The controller, or `FixedK` for a whole number. Raises SpecdecError for anything else."""
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
