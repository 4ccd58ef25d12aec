"""What speculative decoding should gain, from four measured numbers.

- α: probability that a drafted token is accepted.
- c: time of a draft step / time of a target step.
- v: time to score k + 1 tokens / time to score one.
- o (`overhead`): everything else a round costs, in target steps.

The formulas assume the same α at every position. A measured speedup differs from the papers'
formula (v = 1, o = 0) for three reasons: α varies, v is above 1, and a round has overhead.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from specdec_ref.errors import SpecdecError, is_number, is_whole

Real = TypeVar("Real", float, np.ndarray)
Cost = float | Callable[[int], float]
"""v: one number for every k, or a function of the number of scored tokens, v(1) = 1."""


def expected_tokens(alpha: Real, k: int) -> Real:
    """Expected tokens per round: 1 + α + … + αᵏ = (1 − αᵏ⁺¹)/(1 − α).

    The leading 1 is the token that every round adds: the residual's, or the bonus token.

    Args:
        alpha: acceptance rate, a number or array in [0, 1].
        k: drafted tokens, ≥ 0.

    Raises:
        SpecdecError: alpha or k is out of range.

    Leviathan et al. 2022, equation 1.
    """
    _check(alpha, k)
    return sum(alpha**i for i in range(1, k + 1)) + alpha**0


def predicted_speedup(alpha: Real, k: int, c: float, v: Cost = 1.0, overhead: float = 0.0) -> Real:
    """Speedup over one target step per token: S = E[tokens] / (k·c + v(k + 1) + o), and 1 at k = 0.

    Args:
        alpha: acceptance rate, a number or array in [0, 1].
        k: drafted tokens, ≥ 0.
        c: time of a draft step, in target steps, ≥ 0.
        v: time to score k + 1 tokens, in target steps: a number, or a function of the number of
            scored tokens.
        overhead: everything else a round costs, in target steps, ≥ 0.

    Raises:
        SpecdecError: an argument is out of range.

    Leviathan et al. 2022, theorem 3.8, is the case v = 1, o = 0.
    """
    if not (is_number(c) and is_number(overhead) and c >= 0 and overhead >= 0):
        raise SpecdecError(
            f"c={c!r}, overhead={overhead!r}: take numbers ≥ 0, in units of one target step"
        )
    if k == 0:
        return expected_tokens(alpha, 0)
    return expected_tokens(alpha, k) / (k * c + _scoring(v, k) + overhead)


def best_k(alpha: float, c: float, v: Cost = 1.0, overhead: float = 0.0, max_k: int = 32) -> int:
    """The k in 0…max_k with the largest predicted speedup. 0 means that drafting does not pay.

    Args:
        alpha, c, v, overhead: as for `predicted_speedup`.
        max_k: the largest k to consider.

    Raises:
        SpecdecError: an argument is out of range.
    """
    if not is_whole(max_k) or max_k < 0:
        raise SpecdecError(f"max_k={max_k!r}: takes a whole number ≥ 0")
    return max(range(max_k + 1), key=lambda k: float(predicted_speedup(alpha, k, c, v, overhead)))


def break_even_alpha(k: int, c: float, v: Cost = 1.0, overhead: float = 0.0) -> float:
    """The α at which k drafted tokens neither gain nor lose (S = 1), within 1e-12.

    Args:
        k: drafted tokens, ≥ 1.
        c, v, overhead: as for `predicted_speedup`.

    Returns:
        A number in [0, 1], or inf where even α = 1 does not pay.

    Raises:
        SpecdecError: an argument is out of range.
    """
    if not is_whole(k) or k < 1:
        raise SpecdecError(f"k={k!r}: takes a whole number ≥ 1")
    low, high = 0.0, 1.0
    if predicted_speedup(high, k, c, v, overhead) < 1:
        return float("inf")
    while high - low > 1e-12:  # S grows with α, so halving finds the crossing
        middle = (low + high) / 2
        low, high = (
            (low, middle) if predicted_speedup(middle, k, c, v, overhead) >= 1 else (middle, high)
        )
    return high


def _scoring(v: Cost, k: int) -> float:
    cost = v(k + 1) if callable(v) else v
    if not is_number(cost) or cost <= 0:
        raise SpecdecError(
            f"v={cost!r}: takes a number > 0, the time to score k + 1 tokens in target steps"
        )
    return float(cost)


def _check(alpha: object, k: object) -> None:
    values = np.asarray(alpha)
    if (
        isinstance(alpha, list)
        or values.dtype.kind not in "iuf"
        or not ((values >= 0) & (values <= 1)).all()
    ):
        raise SpecdecError(f"alpha={alpha!r:.80}: takes a probability, 0 ≤ α ≤ 1")
    if not is_whole(k) or k < 0:
        raise SpecdecError(f"k={k!r}: takes a whole number ≥ 0")
