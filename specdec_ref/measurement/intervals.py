"""How sure a quantile is: the interval between two of the samples themselves, which needs no assumption on their shape.

How many of n samples lie below the true quantile is a binomial count, so that ranks can be named between which the
quantile lies with a given confidence. Where there are too few samples to name one there is no interval.
"""

import math
from collections.abc import Sequence

import numpy as np

from specdec_ref.errors import SpecdecError, is_number

Interval = tuple[float, float]


def quantile_interval(values: Sequence[float], quantile: float, level: float = 0.95) -> Interval | None:
    """Two of `values` between which their distribution's quantile lies with at least that confidence.

    values: independent samples. quantile, level: in (0, 1). Each side errs with at most (1 − level)/2. None where there
    are too few values, see `samples_needed`. Raises SpecdecError. Conover 1999, section 3.2.
    """
    _check(quantile, level)
    n = len(values)
    if n < samples_needed(quantile, level):
        return None
    from scipy.stats import binom

    tail = (1 - level) / 2
    below = binom.cdf(np.arange(n), n, quantile)  # below[i]: chance that at most i of the n lie below the quantile
    ordered = sorted(map(float, values))
    low = int((below <= tail).sum())  # the low-th smallest is above the quantile with a chance of at most `tail`
    high = int((below < 1 - tail).sum()) + 1
    return ordered[low - 1], ordered[high - 1]


def samples_needed(quantile: float, level: float = 0.95) -> int:
    """The fewest samples that `quantile_interval` needs: 6 for a median, 368 for a 99th percentile, at 95 %.

    The largest of n samples is below the quantile with a chance of quantileⁿ, which must be at most (1 − level)/2; and
    likewise the smallest is above it.
    """
    _check(quantile, level)
    rarer = max(quantile, 1 - quantile)
    return math.ceil(math.log((1 - level) / 2) / math.log(rarer) - 1e-9)


def _check(quantile: float, level: float) -> None:
    for name, value in (("quantile", quantile), ("level", level)):
        if not is_number(value) or not 0 < value < 1:
            raise SpecdecError(f"{name}={value!r:.80}: takes a number between 0 and 1")
