"""Confidence intervals of quantiles and shares, without assumptions about the distribution of the samples.

The number of samples below the true quantile is binomial. So two of the samples bound the quantile with a given
confidence. With too few samples there is no interval.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

from specdec_ref.errors import SpecdecError, is_number

Interval = tuple[float, float]


def quantile_interval(values: Sequence[float], quantile: float, level: float = 0.95) -> Interval | None:
    """A confidence interval for a quantile, between two of the samples. Each side errs with at most (1 − level)/2.

    Args:
        values: independent samples.
        quantile: in (0, 1).
        level: confidence, in (0, 1).

    Returns:
        The interval, or None for too few values (see `samples_needed`).

    Raises:
        SpecdecError: quantile or level is out of range.

    Conover 1999, section 3.2.
    """
    _check(quantile, level)
    n = len(values)
    if n < samples_needed(quantile, level):
        return None
    from scipy.stats import quantile_test

    interval = quantile_test(values, p=quantile).confidence_interval(level)
    return float(interval.low), float(interval.high)


def samples_needed(quantile: float, level: float = 0.95) -> int:
    """The number of samples that `quantile_interval` needs: 6 for a median, 368 for a 99th percentile, at 95 %.

    The largest of n samples is below the quantile with probability quantileⁿ, which must be at most (1 − level)/2.
    The same holds for the smallest sample above the quantile.
    """
    _check(quantile, level)
    rarer = max(quantile, 1 - quantile)
    return math.ceil(math.log((1 - level) / 2) / math.log(rarer) - 1e-9)


def share_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Confidence interval of a probability, from independent trials; (0, 1) without any. Wilson 1927."""
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    square = z * z / trials
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / trials + square / trials / 4)
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def _check(quantile: float, level: float) -> None:
    for name, value in (("quantile", quantile), ("level", level)):
        if not is_number(value) or not 0 < value < 1:
            raise SpecdecError(f"{name}={value!r:.80}: takes a number between 0 and 1")
