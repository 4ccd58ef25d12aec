"""The promises of `theory`: its formulas agree with simulation, with sums by hand and with the literature's numbers."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from specdec_ref import SpecdecError, best_k, break_even_alpha, expected_tokens, predicted_speedup


@pytest.mark.parametrize(("alpha", "k"), [(0.3, 1), (0.5, 4), (0.8, 3), (0.95, 10)])
def test_expected_tokens_agrees_with_a_simulation_of_rounds(alpha: float, k: int) -> None:
    # Fixed seed; a right formula is farther than 4 standard errors away for 6 seeds in 100,000.
    rounds = 100_000
    accepted = np.random.default_rng(0).random((rounds, k)) < alpha
    tokens = 1 + accepted.cumprod(axis=1).sum(axis=1)
    assert abs(expected_tokens(alpha, k) - tokens.mean()) < 4 * tokens.std() / math.sqrt(rounds)


def v(n: int) -> float:
    """What scoring n tokens costs, in steps."""
    return 1 + 0.08 * (n - 1)


def simulated_speedup(alpha: float, k: int, c: float, overhead: float, tokens: int = 60_000) -> float:
    """Rounds played on a clock until so many tokens are there, against one step for each."""
    rng = np.random.default_rng(1)
    clock, emitted = 0.0, 0
    while emitted < tokens:
        accepted = 0
        while accepted < k and rng.random() < alpha:
            accepted += 1
        clock += k * c + v(k + 1) + overhead
        emitted += accepted + 1
    return emitted / clock


@pytest.mark.parametrize("alpha", [0.4, 0.8])
def test_speedup_and_best_k_are_those_of_rounds_on_a_clock(alpha: float) -> None:
    # 60,000 tokens tell a speedup to 0.3 % (one standard error); fixed seed, 4 of them allowed.
    c, overhead = 0.1, 0.05
    played = {k: simulated_speedup(alpha, k, c, overhead) for k in range(1, 9)}
    for k, speedup in played.items():
        assert predicted_speedup(alpha, k, c, v, overhead) == pytest.approx(speedup, rel=0.012)
    best = best_k(alpha, c, v, overhead, max_k=8)
    assert played[best] >= 0.988 * max(played.values())


@pytest.mark.parametrize("k", [1, 4])
def test_at_break_even_rounds_on_a_clock_gain_nothing(k: int) -> None:
    alpha = break_even_alpha(k, 0.1, v, 0.05)
    assert simulated_speedup(alpha, k, 0.1, 0.05) == pytest.approx(1, rel=0.012)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("k", [0, 1, 5, 32])
def test_expected_tokens_is_the_closed_form_of_the_paper(alpha: float, k: int) -> None:
    assert expected_tokens(alpha, k) == pytest.approx((1 - alpha ** (k + 1)) / (1 - alpha), rel=1e-12)


@pytest.mark.parametrize("k", [0, 1, 7])
def test_a_draft_that_is_never_accepted_leaves_one_token_a_round(k: int) -> None:
    assert expected_tokens(0.0, k) == 1


@pytest.mark.parametrize("k", [0, 1, 7])
def test_a_draft_that_is_always_accepted_gives_k_and_the_bonus_token(k: int) -> None:
    assert expected_tokens(1.0, k) == k + 1


@pytest.mark.parametrize("k", [0, 1, 4])
def test_arrays_give_what_each_number_gives(k: int) -> None:
    alpha = np.linspace(0, 1, 11)
    one_by_one = [expected_tokens(float(a), k) for a in alpha]
    np.testing.assert_allclose(expected_tokens(alpha, k), one_by_one, rtol=1e-12)
    one_by_one = [predicted_speedup(float(a), k, 0.1, 1.2, 0.05) for a in alpha]
    np.testing.assert_allclose(predicted_speedup(alpha, k, 0.1, 1.2, 0.05), one_by_one, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "k", "speedup"), [(0.5, 2, 1.46), (0.7, 4, 1.98), (0.9, 10, 3.43)])
def test_a_draft_ten_times_faster_has_the_known_best_k_and_speedup(alpha: float, k: int, speedup: float) -> None:
    assert best_k(alpha, c=0.1) == k
    assert predicted_speedup(alpha, k, c=0.1) == pytest.approx(speedup, abs=0.005)


def test_speedup_counts_draft_scoring_and_overhead() -> None:
    # E = 1 + 0.5 + 0.25 = 1.75 tokens in 2 drafts of 0.25, scoring 3 tokens for 1.5, and 0.5 of overhead: 2.5 steps.
    assert predicted_speedup(0.5, 2, c=0.25, v=1.5, overhead=0.5) == pytest.approx(1.75 / 2.5, rel=1e-12)
    assert predicted_speedup(0.5, 2, c=0.25, v=lambda n: n / 2, overhead=0.5) == pytest.approx(1.75 / 2.5, rel=1e-12)


def test_no_draft_is_the_baseline_whatever_the_costs() -> None:
    assert predicted_speedup(0.3, 0, c=5.0, v=7.0, overhead=2.0) == 1


@pytest.mark.parametrize(("k", "c", "v", "overhead"), [(1, 0.1, 1.0, 0.0), (4, 0.1, 1.3, 0.1), (8, 0.05, 1.0, 0.0)])
def test_at_the_break_even_acceptance_the_speedup_is_one(k: int, c: float, v: float, overhead: float) -> None:
    alpha = break_even_alpha(k, c, v, overhead)
    assert 0 < alpha < 1
    assert predicted_speedup(alpha, k, c, v, overhead) == pytest.approx(1, abs=1e-9)


def test_break_even_is_infinite_where_even_certain_acceptance_does_not_pay() -> None:
    assert break_even_alpha(2, c=1.5) == math.inf


def test_break_even_for_one_token_of_a_free_verify_is_the_cost_of_its_draft() -> None:
    assert break_even_alpha(1, c=0.37) == pytest.approx(0.37, abs=1e-9)  # (1 + α) / (1 + c) = 1


@pytest.mark.parametrize(("alpha", "c", "v"), [(0.0, 0.01, 1.0), (0.9, 1.0, 1.0), (0.1, 0.2, 1.0), (0.9, 0.0, float)])
def test_a_useless_draft_has_best_k_0(alpha: float, c: float, v: float | Callable[[int], float]) -> None:
    assert best_k(alpha, c, v) == 0


def test_best_k_is_the_best_of_all_and_keeps_to_max_k() -> None:
    for alpha in (0.2, 0.6, 0.85, 0.98):
        speedups = [sum(alpha**i for i in range(k + 1)) / (0.05 * k + (1 + 0.02 * k) + 0.1) for k in range(33)]
        speedups[0] = 1.0
        assert best_k(alpha, 0.05, v=lambda n: 1 + 0.02 * (n - 1), overhead=0.1) == int(np.argmax(speedups))
    assert best_k(1.0, 0.0, max_k=5) == 5


WRONG: dict[str, Callable[[], object]] = {
    "alpha below 0": lambda: expected_tokens(-0.1, 2),
    "alpha above 1": lambda: expected_tokens(1.1, 2),
    "alpha NaN": lambda: expected_tokens(math.nan, 2),
    "one alpha of an array": lambda: expected_tokens(np.array([0.5, 1.5]), 2),
    "k below 0": lambda: expected_tokens(0.5, -1),
    "k broken": lambda: expected_tokens(0.5, 2.5),
    "k a truth value": lambda: expected_tokens(0.5, True),
    "c below 0": lambda: predicted_speedup(0.5, 2, c=-0.1),
    "c NaN": lambda: predicted_speedup(0.5, 2, c=math.nan),
    "overhead below 0": lambda: predicted_speedup(0.5, 2, c=0.1, overhead=-1),
    "overhead NaN": lambda: predicted_speedup(0.5, 2, c=0.1, overhead=math.nan),
    "v zero": lambda: predicted_speedup(0.5, 2, c=0.1, v=0),
    "v NaN": lambda: predicted_speedup(0.5, 2, c=0.1, v=math.nan),
    "v negative at some n": lambda: predicted_speedup(0.5, 2, c=0.1, v=lambda n: -1.0),
    "best_k, alpha above 1": lambda: best_k(1.5, c=0.1),
    "best_k, c below 0": lambda: best_k(0.5, c=-0.1),
    "best_k, max_k below 0": lambda: best_k(0.5, c=0.1, max_k=-1),
    "break-even, k 0": lambda: break_even_alpha(0, c=0.1),
    "break-even, k broken": lambda: break_even_alpha(2.5, c=0.1),
    "break-even, c below 0": lambda: break_even_alpha(2, c=-1),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_raises_one_line(wrong: Callable[[], object]) -> None:
    with pytest.raises(SpecdecError) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_a_list_of_rates_raises() -> None:
    with pytest.raises(SpecdecError, match="takes a probability"):
        expected_tokens([0.5, 0.7], 3)  # type: ignore[type-var]
