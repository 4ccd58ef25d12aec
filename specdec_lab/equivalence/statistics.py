"""Statistics of counts: is it the same distribution, how far off may it be, and how small a difference is detected?

Total variation, TV = ½ Σ |observed − true probability|, is the largest difference in the probability of any event. Over
several prompts it is their mean, weighted by samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdec_ref.errors import SpecdecError, is_number, is_whole

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Fit:
    """Pearson's χ² over any number of tables: their sum, its degrees of freedom, and its p-value."""

    chi2: float
    freedom: int
    p_value: float


def fit(observed: Sequence[Counts], probabilities: Sequence[Numbers]) -> Fit:
    """How well counts agree with probabilities, one array of outcomes for each prompt.

    Independent χ² add up, and so do their degrees of freedom, so this is one test however many prompts there are, and
    needs no correction for them. For counts its variance is a little above 2 · freedom (Haldane 1937), so the p-value
    is that of a scaled χ² with its true mean and variance. Where nothing is random the p-value is 1.
    """
    from scipy import stats

    chi2, freedom, variance = 0.0, 0, 0.0
    for counts, p in zip(observed, probabilities, strict=True):
        n, outcomes = int(counts.sum()), len(p)
        if n and outcomes > 1:
            chi2 += float(stats.chisquare(counts, n * p).statistic)
            freedom += outcomes - 1
            variance += 2 * (outcomes - 1) + (float((1 / p).sum()) - outcomes**2 - 2 * outcomes + 2) / n
    if not freedom:
        return Fit(chi2, 0, 1.0)
    scale = variance / (2 * freedom)
    return Fit(chi2, freedom, float(stats.chi2.sf(chi2 / scale, freedom / scale)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected so that the smallest may be quoted. Holm 1979."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        corrected[i] = min(1.0, largest)
    return corrected


def detectable_tv(samples: int, freedom: int, false_alarm: float = 0.001, power: float = 0.99) -> float:
    """The smallest total variation that `fit` detects with probability `power`, in any direction; at most 1.

    A difference of TV moves χ² by samples · Σ (difference)²/p ≥ samples · 4 TV² (Cauchy and Schwarz), so it is the
    noncentral χ² with λ = 4 · samples · TV². Any other direction of the same size is detected more often. Raises
    SpecdecError.
    """
    if not is_whole(samples) or samples < 0 or not is_whole(freedom) or freedom < 0:
        raise SpecdecError(f"samples={samples!r}, freedom={freedom!r}: take whole numbers ≥ 0")
    if not (is_number(false_alarm) and is_number(power) and 0 < false_alarm < power < 1):
        raise SpecdecError(f"false_alarm={false_alarm!r}, power={power!r}: take 0 < false_alarm < power < 1")
    if samples == 0 or freedom == 0:
        return 1.0
    from scipy import optimize, stats

    limit = stats.chi2.isf(false_alarm, freedom)

    def missing(noncentrality: float) -> float:
        return float(stats.ncx2.sf(limit, freedom, noncentrality) - power)

    above = 1.0
    while missing(above) < 0:
        above *= 2
    return min(1.0, math.sqrt(optimize.brentq(missing, 0.0, above, rtol=1e-6) / samples) / 2)


def total_variation(observed: Sequence[Counts], probabilities: Sequence[Numbers]) -> float:
    """TV of the counted shares from the probabilities. It is positive even for correct samples: see `chance_tv`."""
    samples = sum(int(counts.sum()) for counts in observed)
    off = sum(float(np.abs(c - c.sum() * p).sum()) for c, p in zip(observed, probabilities, strict=True))
    return off / 2 / samples if samples else 0.0


def chance_tv(samples: Sequence[int], probabilities: Sequence[Numbers]) -> float:
    """The mean TV of as many samples of the true distribution (normal approximation).

    ½ Σ E|count − n p| with E|normal| = σ √(2/π).
    """
    spread = sum(float(np.sqrt(n * p * (1 - p)).sum()) for n, p in zip(samples, probabilities, strict=True))
    return spread / math.sqrt(2 * math.pi) / sum(samples) if sum(samples) else 0.0


def tv_interval(
    first: Sequence[Counts], second: Sequence[Counts], probabilities: Sequence[Numbers], confidence: float = 0.95
) -> tuple[float, float]:
    """An interval for the sampler's true TV over these outcomes, with coverage ≥ `confidence` at any sample size.

    first, second: counts of the samples' two halves. Upper end: the measured TV is too large on average (it is convex),
    and one sample changes it by at most 1/N. So the true TV exceeds it by more than √(ln(1/ε)/2N) with probability ≤ ε
    (McDiarmid 1989). Lower end: TV is the largest excess frequency of any set of outcomes. The first half chooses a
    set, the second counts it (Hoeffding 1963). ε = (1 − confidence)/2 each.
    """
    error = (1 - confidence) / 2
    samples = sum(int(a.sum() + b.sum()) for a, b in zip(first, second, strict=True))
    if not samples:
        return 0.0, 1.0
    everything = [a + b for a, b in zip(first, second, strict=True)]
    above = total_variation(everything, probabilities) + math.sqrt(math.log(1 / error) / (2 * samples))
    counted, excess = 0, 0.0
    for a, b, p in zip(first, second, probabilities, strict=True):
        chosen = a > a.sum() * p
        excess += float(b[chosen].sum() - b.sum() * p[chosen].sum())
        counted += int(b.sum())
    below = (excess / counted if counted else 0.0) - math.sqrt(math.log(1 / error) / (2 * max(1, counted)))
    return max(0.0, below), min(1.0, above)
