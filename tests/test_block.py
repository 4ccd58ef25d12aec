"""The promises of block verification: the paper's algorithm with the same random numbers, never fewer accepted tokens
than token verification, and the optimum. That it is exact, the proof suite shows (tests/test_exact.py).

Enumerations have no randomness. Statistical tests have fixed seeds and state their false-alarm rate.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec_ref as sd
from specdec_lab.equivalence.empirical import empirical
from specdec_lab.equivalence.engines import OurLoop
from specdec_lab.equivalence.enumeration import EveryDecision
from specdec_lab.teaching.blocks import BlockOutcome, block_verdict, enumerate_rounds, token_verdict
from specdec_ref import Randomness, SeededRandomness, SpecdecError, Verdict, Verify, verify, verify_block
from specdec_ref.decoding import speculate

PROMPTS = [[5], [40, 3, 12, 12, 61, 7, 30, 2, 9], [7, 9, 11] * 6]


def random_rows(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(*shape, generator=generator, dtype=dtype)).softmax(-1)


class Numbers:
    """A `Randomness` with given uniform numbers: u [..., k + 1] for the prefixes, last [...] for the next token."""

    def __init__(self, u: Tensor, last: Tensor):
        self.u, self.last = u, last

    def accept(self, probability: Tensor) -> Tensor:
        return self.u < probability

    def draw(self, probabilities: Tensor) -> Tensor:
        cumulative = probabilities.cumsum(-1)
        return (cumulative <= self.last[..., None] * cumulative[..., -1:]).sum(-1)


def by_the_paper(
    p: list[list[float]], q: list[list[float]], drafted: list[int], u: list[float], last: float
) -> tuple[int, int]:
    """Sun et al. 2024, algorithm 2, for one sequence, in plain Python. Returns τ and the next token."""
    weights = [1.0]
    for i, token in enumerate(drafted):
        weights.append(min(1.0, weights[-1] * p[i][token] / q[i][token]))
    accepted = 0
    for i in range(1, len(drafted) + 1):
        passing = weights[i]
        if i < len(drafted):
            surplus = sum(max(weights[i] * a - b, 0.0) for a, b in zip(p[i], q[i], strict=True))
            passing = 1.0 if weights[i] == 1 else surplus / (surplus + 1 - weights[i])
        if u[i] < passing:
            accepted = i
    rest = p[accepted]
    if accepted < len(drafted):
        positive = [max(weights[accepted] * a - b, 0.0) for a, b in zip(p[accepted], q[accepted], strict=True)]
        rest = [x / sum(positive) for x in positive]
    for token, probability in enumerate(rest):
        last -= probability
        if last < 0:
            return accepted, token
    raise AssertionError("a distribution that does not sum to one")


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_it_does_what_the_papers_algorithm_does_with_the_same_numbers(k: int) -> None:
    sequences, generator = 500, torch.Generator().manual_seed(k)
    p, q = random_rows(sequences, k + 1, 6, seed=1), random_rows(sequences, k, 6, seed=2)
    drafted = SeededRandomness(k).draw(q)
    u = torch.rand(sequences, k + 1, generator=generator, dtype=torch.float64)
    last = torch.rand(sequences, generator=generator, dtype=torch.float64)
    verdict = verify_block(p, q, drafted, Numbers(u, last))
    expected = [
        by_the_paper(p[i].tolist(), q[i].tolist(), drafted[i].tolist(), u[i].tolist(), float(last[i]))
        for i in range(sequences)
    ]
    assert list(zip(verdict.accepted.tolist(), verdict.next_token.tolist(), strict=True)) == expected
    assert {n for n, _ in expected} == set(range(k + 1))  # every number of accepted tokens occurred


def test_a_batch_of_any_shape_is_decided_row_by_row() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = random_rows(2, 3, 5, 4, seed=3), random_rows(2, 3, 4, 4, seed=4)
    drafted = torch.randint(0, 4, (2, 3, 4), generator=generator)
    u, last = torch.rand(2, 3, 5, generator=generator), torch.rand(2, 3, generator=generator)
    whole = verify_block(p, q, drafted, Numbers(u, last))
    for i, j in itertools.product(range(2), range(3)):
        alone = verify_block(p[i, j], q[i, j], drafted[i, j], Numbers(u[i, j], last[i, j]))
        assert alone == Verdict(whole.accepted[i, j], whole.next_token[i, j])


# What it accepts


def markov_tables(size: int, seed: int) -> tuple[Tensor, Tensor]:
    p, q = random_rows(2, size, size, seed=seed)
    return p, q


def most_accepted(p: Tensor, q: Tensor, k: int) -> float:
    """The most tokens that an exact rule can accept on average after token 0: Σ min(drafted, accepted before · p).

    Sun et al. 2024: the sum is over all drafts of 1 … k tokens, by the probability that they are drafted, and that all
    but the last are drafted and accepted.
    """
    total = 0.0
    for length in range(1, k + 1):
        for tokens in itertools.product(range(len(p)), repeat=length):
            drafted = accepted = 1.0
            for before, token in itertools.pairwise((0, *tokens)):
                drafted *= float(q[before, token])
                accepted = min(drafted, accepted * float(p[before, token]))
            total += accepted
    return total


def test_the_papers_example_accepts_11_of_9_tokens_instead_of_10() -> None:
    """Two tokens, p = (1/3, 2/3) and q = (2/3, 1/3) at every position, k = 2: section 3 of the paper."""
    p = torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64).expand(2, 2)
    q = p.flip(-1)
    assert enumerate_rounds(p, q, 2, block=False)[1] == pytest.approx(10 / 9, abs=1e-12)
    assert enumerate_rounds(p, q, 2, block=True)[1] == pytest.approx(11 / 9, abs=1e-12)


@pytest.mark.parametrize(("size", "k", "seeds"), [(2, 1, 50), (2, 4, 20), (3, 2, 100), (4, 2, 30), (3, 3, 20)])
def test_it_never_accepts_fewer_than_token_verification_and_always_the_optimum(size: int, k: int, seeds: int) -> None:
    gains = []
    for seed in range(seeds):
        p, q = markov_tables(size, seed)
        by_token, by_block = (enumerate_rounds(p, q, k, block)[1] for block in (False, True))
        assert by_block >= by_token - 1e-12
        assert by_block == pytest.approx(most_accepted(p, q, k), abs=1e-12)
        gains.append(by_block - by_token)
    assert max(gains) == pytest.approx(0, abs=1e-12) if k == 1 else max(gains) > 0.01


@pytest.mark.parametrize("i", [1, 2, 3])
def test_at_least_i_tokens_are_accepted_with_the_weight_of_the_first_i(i: int) -> None:
    """On average over the tokens drafted after them. So the first one is accepted as often as by token verification."""
    p, q = markov_tables(3, 5)
    for first in itertools.product(range(3), repeat=i):
        weight = 1.0
        for before, token in itertools.pairwise((0, *first)):
            weight = min(1.0, weight * float(p[before, token] / q[before, token]))
        accepted = 0.0
        for rest in itertools.product(range(3), repeat=3 - i):
            drafted = math.prod(float(q[before, token]) for before, token in itertools.pairwise((first[-1], *rest)))
            outcomes = block_verdict(p, q, (*first, *rest))
            accepted += drafted * sum(probability for n, probability, _ in outcomes if n >= i)
        assert accepted == pytest.approx(weight, abs=1e-12)


def emitted(outcomes: list[BlockOutcome]) -> Tensor:
    """Probability of each number of accepted tokens and next token, [k + 1, V]."""
    return torch.stack([probability * next_token for _, probability, next_token in outcomes])


@pytest.mark.parametrize("seed", range(5))
def test_with_a_deterministic_draft_it_equals_token_verification_in_distribution(seed: int) -> None:
    p, _ = markov_tables(4, seed)
    for tokens in itertools.product(range(4), repeat=3):
        q = torch.zeros(4, 4, dtype=torch.float64)
        q[[0, *tokens[:-1]], list(tokens)] = 1
        if (q.sum(-1) > 1).any():
            continue  # one token was followed by two different ones, which a table cannot draft
        by_token, by_block = (emitted(verdict(p, q, tokens)) for verdict in (token_verdict, block_verdict))
        torch.testing.assert_close(by_block, by_token, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_greedily_it_equals_token_verification(seed: int) -> None:
    p, q = (torch.eye(3)[random_rows(2, n, 3, seed=seed + 50 * n).argmax(-1)] for n in (5, 4))
    drafted = q.argmax(-1)
    by_token, by_block = (rule(p, q, drafted, SeededRandomness(seed)) for rule in (verify, verify_block))
    assert torch.equal(by_token.accepted, by_block.accepted)
    assert torch.equal(by_token.next_token, by_block.next_token)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_row_that_drafted_fewer_tokens_is_decided_by_those(n: int) -> None:
    """In a ragged batch q is zero from there on, and the tokens are padding."""
    p, q = random_rows(4, 5, seed=6), random_rows(3, 5, seed=7)
    q[n:] = 0
    drafted = torch.tensor([1, 4, 2]) * (torch.arange(3) < n)
    whole, alone = EveryDecision(4), EveryDecision(n + 1)
    probability = torch.zeros(2, 4, dtype=torch.float64)
    for i, (randomness, k) in enumerate(((whole, 3), (alone, n))):
        ways = len(randomness.decisions)
        rows_p, rows_q = p[: k + 1].expand(ways, -1, -1), q[:k].expand(ways, -1, -1)
        accepted = verify_block(rows_p, rows_q, drafted[:k].expand(ways, -1), randomness).accepted
        probability[i].index_add_(0, accepted, randomness.probability)
        certain = randomness.next_token[(accepted == n) & (randomness.probability > 0)][0]
        torch.testing.assert_close(certain, p[n], rtol=0, atol=1e-12)
    torch.testing.assert_close(probability[0], probability[1], rtol=0, atol=1e-12)
    assert float(probability[0, n + 1 :].sum()) == 0


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    p = random_rows(1000, 5, 8, seed=8, dtype=torch.float32)
    drafted = SeededRandomness(0).draw(p[:, :-1])
    assert (verify_block(p, p[:, :-1], drafted, SeededRandomness(1)).accepted == 4).all()


@pytest.mark.parametrize("impossible", ["p", "q"])
def test_an_impossible_token_is_never_accepted_even_with_u_0(impossible: str) -> None:
    one, other = torch.tensor([0.0, 0.4, 0.6]), torch.tensor([0.3, 0.3, 0.4])
    p, q = (one, other) if impossible == "p" else (other, one)
    zeros = Numbers(torch.zeros(3), torch.tensor(0.5))
    assert verify_block(p.expand(3, 3), q.expand(2, 3), torch.tensor([0, 1]), zeros).accepted == 0


def test_quotients_beyond_the_largest_number_and_impossible_tokens_give_no_nan() -> None:
    p = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    q = torch.tensor([[0.5, 0.5], [1.0, 1e-45]])
    for drafted, accepted in (([0, 1], 0), ([1, 1], 2)):
        verdict = verify_block(p, q, torch.tensor(drafted), SeededRandomness(0))
        assert verdict.accepted == accepted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_probabilities_are_decided_in_32(dtype: torch.dtype) -> None:
    """A bfloat16 random number is 0 once in 256 times, and would then accept a token of probability 1e-4."""
    p = torch.tensor([[1e-4, 1 - 1e-4]], dtype=dtype).expand(200_000, 2, 2)
    q = torch.tensor([[1.0, 0.0]], dtype=dtype).expand(200_000, 1, 2)
    verdict = verify_block(p, q, torch.zeros(200_000, 1, dtype=torch.int64), SeededRandomness(3))
    assert 0 < int(verdict.accepted.sum()) < 60  # 20 expected; 780 in bfloat16


@pytest.mark.parametrize(
    ("p", "q", "drafted"),
    [((3, 4), (2, 5), (2,)), ((2, 4), (2, 4), (2,)), ((3, 4), (2, 4), (3,)), ((5, 3, 4), (1, 2, 4), (5, 2))],
)
def test_shapes_that_do_not_fit_are_reported(p: tuple[int, ...], q: tuple[int, ...], drafted: tuple[int, ...]) -> None:
    with pytest.raises(SpecdecError, match="do not fit together"):
        verify_block(torch.ones(p) / 4, torch.ones(q) / 4, torch.zeros(drafted, dtype=torch.int64), SeededRandomness(0))


# The loop, the calls and the command line


def test_the_loop_takes_any_rule(pair: sd.Pair) -> None:
    def accept_nothing(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> Verdict:
        return Verdict(torch.zeros(len(p), dtype=torch.int64), randomness.draw(p[:, 0]))

    def accepted_by(rule: Verify) -> list[int]:
        assert pair.draft is not None
        target, draft = sd.TransformersModel(pair.target), sd.TransformersModel(pair.draft)
        row = sd.Row(tuple(PROMPTS[1]), 12)
        loop = speculate(
            target,
            sd.ModelDrafter(draft),
            [row],
            sd.FixedK(3),
            sd.GREEDY,
            SeededRandomness(0),
            verify=rule,
        )
        assert sum(1 for _ in loop) == len(row.rounds)
        return [r.accepted for r in row.rounds]

    assert accepted_by(accept_nothing) == [0] * 12
    assert accepted_by(verify_block) == accepted_by(verify) != [0] * 12


def test_greedy_text_is_the_same_with_both_rules(pair: sd.Pair) -> None:
    by_token, by_block = (
        sd.generate_speculative(pair, PROMPTS, k=4, max_new_tokens=24, sampling=sd.GREEDY, verification=rule)
        for rule in ("token", "block")
    )
    assert [g.tokens for g in by_block] == [g.tokens for g in by_token]
    assert [[r.accepted for r in g.rounds] for g in by_block] == [[r.accepted for r in g.rounds] for g in by_token]


def test_token_verification_is_the_default_and_a_stream_takes_the_rule_as_well(pair: sd.Pair) -> None:
    def generated(**options: str) -> list[tuple[int, ...]]:
        settings: dict[str, Any] = {"k": 4, "max_new_tokens": 40, **options}
        return [sd.generate_speculative(pair, PROMPTS[1], seed=seed, **settings).tokens for seed in range(5)]

    def streamed(rule: str) -> Iterator[tuple[int, ...]]:
        for seed in range(5):
            ended: list[sd.Generation] = []
            chunks = sd.stream_speculative(
                pair, PROMPTS[1], k=4, max_new_tokens=40, seed=seed, verification=rule, on_end=ended.append
            )
            assert "".join(chunk.text for chunk in chunks) == ended[0].text
            yield ended[0].tokens

    assert generated() == generated(verification="token") == list(streamed("token"))
    assert generated(verification="block") == list(streamed("block")) != generated()


def test_sampled_text_has_the_targets_distribution(pair: sd.Pair) -> None:
    """Fixed seeds; with new ones a right rule would fail each of the two once in 1,000 times."""
    for k, sampling in ((2, sd.Sampling()), (3, sd.Sampling(temperature=0.8, top_k=12, top_p=0.9))):
        engine = OurLoop(pair, k, sampling, verification="block")
        assert engine.name == f"our loop, k = {k}, block verification"
        result = empirical(pair, engine, PROMPTS[:2], length=k + 2, samples=6_000, sampling=sampling)
        assert result.consistent, result.explain()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "--verification", "blocks"), "--verification blocks: takes token or block"),
        (("bench", "--verification", "block", "--drafts"), "changes nothing with --suite, --drafts"),
        (("equivalence", "--verification", "blocks"), "--verification blocks: takes token or block"),
        (("equivalence", "--verification", "block", "--exact"), "changes nothing with --exact"),
        (("equivalence", "--verification", "block", "--engine", "assisted"), "changes nothing with --engine assisted"),
    ],
)
def test_the_command_line_reports_a_rule_that_would_be_ignored(
    arguments: tuple[str, ...], words: str, check_wrong_use: Callable[[tuple[str, ...], str], None]
) -> None:
    check_wrong_use(arguments, words)
