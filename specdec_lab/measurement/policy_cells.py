"""The measurements at one batch size and context length, and the recommended k.

The rule is in `recommend`: the k with the largest lower bound of its gain, and 0 where no gain is clear.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from specdec_lab.measurement.costs import Costs
from specdec_lab.measurement.intervals import quantile_interval, samples_needed
from specdec_ref.errors import SpecdecError
from specdec_ref.theory import predicted_speedup

CLEAR = 1.02
"""A gain is clear if the lower end of its interval is above this."""
LEVEL = 0.9
"""Confidence of the two-sided interval. Its lower end alone errs in at most 5 % of cases."""


@dataclass(frozen=True)
class Cell:
    """One batch size at one context.

    Attributes:
        costs: seconds of its steps.
        alpha: acceptance rate of the predictions.
        predicted: by k, the formula's speedup.
        measured: by k, the median speedup of real rounds.
        low: by k, the lower end of the measured speedup with 95 % confidence.
        k: the recommendation.
    """

    batch: int
    context: int
    costs: Costs
    alpha: float
    predicted: dict[int, float]
    measured: dict[int, float]
    low: dict[int, float]
    k: int

    @property
    def speedup(self) -> float:
        """Measured speedup of the recommended k; 1 for k = 0."""
        return self.measured[self.k] if self.k else 1.0


def recommend(low: Mapping[int, float]) -> int:
    """The k with the largest lower bound; 0 where none is clearly above 1. low: lower ends of speedups, by k."""
    best = max(low, key=lambda k: (low[k], -k), default=0)
    return best if best and low[best] >= CLEAR else 0


def judge(
    batch: int,
    context: int,
    costs: Costs,
    alpha: float,
    ratios: Mapping[int, Sequence[float]],
    predicted: dict[int, float] | None = None,
) -> Cell:
    """A cell with its recommendation, from the measurements.

    Args:
        batch, context, costs, alpha: as in `Cell`.
        ratios: by k ≥ 1, speedups of single turns over k = 0, at least 5 of each.
        predicted: as in `Cell`; None takes the formula's.
    """
    num_needed = samples_needed(0.5, LEVEL)
    for k, values in ratios.items():
        if len(values) < num_needed:
            raise SpecdecError(f"ratios: {len(values)} for k = {k}; takes at least {num_needed}, for an interval")
    low = {0: 1.0} | {k: (quantile_interval(v, 0.5, LEVEL) or (0.0,))[0] for k, v in ratios.items()}
    measured = {0: 1.0} | {k: median(v) for k, v in ratios.items()}
    if predicted is None:
        predicted = {k: float(predicted_speedup(alpha, k, costs.c, costs.v)) for k in measured}
    return Cell(batch, context, costs, alpha, predicted, measured, low, recommend(low))


def between(known: Sequence[int], value: float) -> list[tuple[int, float]]:
    """The measured points around `value` with their shares, on a logarithmic scale; the nearest one outside."""
    value = min(max(value, known[0]), known[-1])
    i = min(bisect_right(known, value), len(known) - 1)
    low, high = known[max(0, i - 1)], known[i]
    if low == high:
        return [(high, 1.0)]
    share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return [(low, 1 - share), (high, share)]
