"""The promises of `sampling`: the distributions are transformers' own, and samples follow them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specdec_ref import GREEDY, Sampling, SeededRandomness

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=1.5, top_k=5),
    Sampling(top_k=1),
    Sampling(top_k=1000),
    Sampling(top_p=0.9),
    Sampling(top_p=0.01),
    Sampling(top_p=1.0),
    Sampling(temperature=0.8, top_k=10, top_p=0.6),
    Sampling(temperature=2.0, top_k=40, top_p=0.95),
]


def by_transformers(logits: Tensor, sampling: Sampling) -> Tensor:
    """What `generate` would draw from. logits: [B, V]."""
    warpers = LogitsProcessorList()
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.int64), logits).softmax(-1)


logits = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=12)
samplings = st.builds(
    Sampling,
    temperature=st.one_of(st.just(0.0), st.floats(0.05, 5)),
    top_k=st.one_of(st.none(), st.integers(1, 15)),
    top_p=st.one_of(st.none(), st.floats(0.01, 1)),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(logits, samplings)
def test_every_row_sums_to_one_and_the_likeliest_token_stays(row: list[float], sampling: Sampling) -> None:
    scores = torch.tensor([row, row[::-1]])
    p = sampling.probabilities(scores)
    assert p.dtype == torch.float32
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(2))
    torch.testing.assert_close(p.amax(-1), p.gather(-1, scores.argmax(-1, keepdim=True))[:, 0])
    if sampling.top_k is not None:
        assert ((p > 0).sum(-1) <= max(sampling.top_k, 1)).all() or len(set(row)) < len(row)  # ties are kept
    if sampling.temperature == 0:
        assert ((p == 1).sum(-1) == 1).all()


def random_logits(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_probabilities_are_those_of_transformers_own_warpers(sampling: Sampling) -> None:
    logits = random_logits(50, 64)
    torch.testing.assert_close(sampling.probabilities(logits), by_transformers(logits, sampling), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampling", [*SAMPLINGS, GREEDY], ids=str)
def test_rows_sum_to_one_for_any_leading_dimensions(sampling: Sampling) -> None:
    p = sampling.probabilities(random_logits(3, 4, 100, dtype=torch.float32))
    torch.testing.assert_close(p.sum(-1), torch.ones(3, 4))


def test_equals_of_the_kth_logit_are_kept_as_in_transformers() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    torch.testing.assert_close(Sampling(top_k=2).probabilities(logits), by_transformers(logits, Sampling(top_k=2)))


def test_temperature_0_is_an_exact_one_hot_of_the_first_largest() -> None:
    logits = torch.tensor([[0.5, 2.0, 2.0, -1.0], [9.0, 8.999, -math.inf, 0.0]])
    assert GREEDY.probabilities(logits).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-20, 1e-38, 1e-300])
def test_a_very_cold_temperature_does_not_overflow(temperature: float) -> None:
    logits = torch.tensor([[0.0, 5e4, 4.9e4], [-3e38, 3e38, 1.0], [1.0, 2.0, -math.inf]])
    assert Sampling(temperature).probabilities(logits).tolist() == [[0, 1, 0]] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampling", [*SAMPLINGS, GREEDY], ids=str)
def test_sixteen_bit_logits_are_computed_in_float32(sampling: Sampling, dtype: torch.dtype) -> None:
    logits = random_logits(5, 64).to(dtype)
    p = sampling.probabilities(logits)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p, sampling.probabilities(logits.double()).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampling", [*SAMPLINGS, GREEDY], ids=str)
def test_float64_logits_stay_float64(sampling: Sampling) -> None:
    assert sampling.probabilities(random_logits(2, 64)).dtype == torch.float64


@pytest.mark.parametrize("sampling", [*SAMPLINGS, GREEDY, Sampling(1e-6)], ids=str)
def test_rows_that_are_no_distribution_come_out_as_nan_and_others_do_not(sampling: Sampling) -> None:
    inf, nan = math.inf, math.nan
    logits = torch.tensor(
        [[nan, 1, 2, 3], [0, 1, 2, nan], [inf, 0, 0, 0], [0, 0, inf, inf], [-inf] * 4, [0, 1, 2, 3], [-inf, 0, 2, 1]]
    )
    assert sampling.probabilities(logits).sum(-1).isnan().tolist() == [True] * 5 + [False] * 2


def draws(randomness: SeededRandomness, p: list[float], *shape: int) -> Tensor:
    return randomness.draw(torch.tensor(p).expand(*shape, len(p)))


def test_the_same_seed_gives_the_same_outcomes_and_another_seed_others() -> None:
    def outcomes(seed: int) -> list[int]:
        randomness = SeededRandomness(seed)
        tokens = draws(randomness, [0.25] * 4, 100).tolist()
        return [*tokens, *randomness.accept(torch.full((100,), 0.5)).int().tolist()]

    assert outcomes(3) == outcomes(3) != outcomes(4)


def test_without_a_seed_every_stream_is_new() -> None:
    uniform = [1 / 64] * 64
    assert draws(SeededRandomness(), uniform, 50).tolist() != draws(SeededRandomness(), uniform, 50).tolist()


def test_the_outcomes_leave_torchs_global_randomness_alone() -> None:
    before = torch.random.get_rng_state()
    draws(SeededRandomness(0), [0.5, 0.5], 10)
    SeededRandomness(0).accept(torch.full((10,), 0.5))
    assert torch.equal(before, torch.random.get_rng_state())


# The statistical tests below have fixed seeds. With a new seed, each would reject a right sampler once in 1,000.
ONCE_IN = 1e-3


def test_tokens_are_drawn_with_their_probabilities() -> None:
    p = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]
    counts = torch.bincount(draws(SeededRandomness(1), p, 50_000), minlength=6)
    assert stats.chisquare(counts, [50_000 * x for x in p]).pvalue > ONCE_IN


def test_draws_of_different_rows_and_of_one_row_in_turn_are_independent() -> None:
    p = [0.5, 0.3, 0.2]
    randomness = SeededRandomness(2)
    first, second = draws(randomness, p, 10_000, 2), draws(randomness, p, 10_000, 2)
    cell = first[:, 0] * 27 + first[:, 1] * 9 + second[:, 0] * 3 + second[:, 1]
    one = torch.tensor(p).double()
    expected = torch.einsum("a,b,c,d->abcd", one, one, one, one).flatten()
    counts = torch.bincount(cell, minlength=81)
    assert stats.chisquare(counts, 10_000 * (expected / expected.sum()).numpy()).pvalue > ONCE_IN


def test_a_token_of_probability_0_is_never_drawn() -> None:
    p = torch.zeros(100)
    p[[3, 50]] = torch.tensor([1e-3, 1 - 1e-3])
    assert set(SeededRandomness(3).draw(p.expand(20_000, 100)).tolist()) == {3, 50}


def test_acceptance_happens_with_its_probability() -> None:
    probability = torch.tensor([0.02, 0.3, 0.5, 0.97]).expand(20_000, 4)
    accepted = SeededRandomness(4).accept(probability).sum(0)
    for n, expected_share in zip(accepted.tolist(), probability[0].tolist(), strict=True):
        assert stats.binomtest(n, 20_000, expected_share).pvalue > ONCE_IN / 4


def test_neighbouring_acceptances_are_independent() -> None:
    first, second = SeededRandomness(5).accept(torch.full((20_000, 2), 0.6)).int().unbind(-1)
    counts = torch.bincount(first * 2 + second, minlength=4)
    assert stats.chisquare(counts, [20_000 * x for x in (0.16, 0.24, 0.24, 0.36)]).pvalue > ONCE_IN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probability_0_is_never_accepted_and_1_always(dtype: torch.dtype) -> None:
    randomness = SeededRandomness(6)
    assert not randomness.accept(torch.zeros(2_000_000, dtype=dtype)).any()
    assert randomness.accept(torch.ones(2_000_000, dtype=dtype)).all()
