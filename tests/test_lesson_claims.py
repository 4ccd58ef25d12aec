"""Claims of lessons 01 to 03 and 10 that are too long to be asserted in a cell."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

import specdec_ref as sd
from specdec_lab.teaching.blocks import enumerate_rounds

ROOT = Path(__file__).parents[1]
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def emitted(keep: Tensor, otherwise: Tensor, q: Tensor = Q) -> Tensor:
    """Distribution of a token: sampled from q and accepted with probability keep, else sampled from `otherwise`."""
    accepted = q * keep
    return accepted + (1 - accepted.sum()) * otherwise


def accepted_only(alpha: float, k: int, c: float = 0.1) -> float:
    """The speedup if the extra token of each round is forgotten."""
    return alpha * (1 - alpha**k) / (1 - alpha) / (k * c + 1)


@pytest.mark.parametrize(
    ("keep", "too_frequent"),
    [((P >= 0.3).double(), [False, True, False]), ((P / Q).clamp(max=1), [False, True, True])],
    ids=["accept if p ≥ 0.3", "min(1, p/q), else p"],
)
def test_both_tempting_rules_are_wrong_by_fifteen_percent(keep: Tensor, too_frequent: list[bool]) -> None:
    out = emitted(keep, P)
    assert float((out - P).abs().sum() / 2) == pytest.approx(0.15)
    assert (out > P).tolist() == too_frequent


def test_every_line_of_the_proof_holds_for_a_thousand_random_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [(6 * torch.randn(2, 6, generator=generator, dtype=torch.float64)).softmax(-1) for _ in range(1000)]
    pairs += [torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.1, 0.9]], dtype=torch.float64)]  # no overlap at all
    for p, q in pairs:
        keep, both = sd.acceptance_probability(p, q), torch.minimum(p, q)
        assert torch.allclose(q * keep, both, atol=1e-12)
        assert float(1 - both.sum()) == pytest.approx(float((p - q).clamp(min=0).sum()), abs=1e-12)
        assert torch.allclose(emitted(keep, sd.residual(p, q), q), p, atol=1e-12)
        assert float(sd.acceptance_rate(p, q)) == pytest.approx(1 - float((p - q).abs().sum() / 2), abs=1e-12)


def test_random_numbers_come_in_steps_of_two_to_the_minus_24() -> None:
    u = torch.rand(2**18, generator=torch.Generator().manual_seed(0))
    assert torch.equal(u * 2**24, (u * 2**24).round())
    assert float(u.max()) < 1


def test_without_a_guard_the_residual_of_equal_models_is_not_a_number() -> None:
    same = torch.tensor([0.1, 0.2, 0.7])
    nearly = torch.nextafter(same, torch.ones(3))
    rest = (same - nearly).clamp(min=0)
    assert bool((same / nearly < 1).all())
    assert bool((rest / rest.sum()).isnan().all())
    assert torch.equal(sd.residual(same, nearly), same)


def test_a_block_accepts_eleven_ninths_where_the_rule_accepts_ten() -> None:
    p = torch.tensor([[1 / 3, 2 / 3]] * 2, dtype=torch.float64)
    accepted = [enumerate_rounds(p, p.flip(1), k=2, block=block)[1] for block in (False, True)]
    assert [Fraction(mean).limit_denominator(100) for mean in accepted] == [Fraction(10, 9), Fraction(11, 9)]


def test_forgetting_the_extra_token_moves_break_even_from_017_to_070() -> None:
    assert sd.break_even_alpha(2, c=0.1) == pytest.approx(0.17, abs=0.005)
    assert accepted_only(0.70, 2) < 1 < accepted_only(0.71, 2)


def test_forgetting_the_extra_token_chooses_a_larger_k_or_none() -> None:
    best = {a: max(range(1, 20), key=lambda k, a=a: accepted_only(a, k)) for a in (0.5, 0.7, 0.9)}  # type: ignore[misc]
    assert accepted_only(0.5, best[0.5]) < 1 < sd.predicted_speedup(0.5, 2, c=0.1)
    assert [sd.best_k(a, c=0.1) for a in best] == [2, 4, 10]
    assert [best[0.7], best[0.9]] == [5, 11]


def test_a_large_k_is_worst_with_a_mediocre_draft_and_best_with_a_good_one() -> None:
    speedups = {a: [sd.predicted_speedup(a, k, c=0.1) for k in (2, 4, 8, 16)] for a in (0.6, 0.95)}
    assert min(speedups[0.6]) == speedups[0.6][-1] < 1
    assert max(speedups[0.95]) == speedups[0.95][-1]


def test_the_best_k_shrinks_with_costs_and_grows_with_overhead() -> None:
    best = sd.best_k(0.8, c=0.1)
    assert sd.best_k(0.4, c=0.1) < best / 2
    assert sd.best_k(0.8, c=0.2) == sd.best_k(0.8, c=0.1, v=lambda n: 1 + 0.1 * (n - 1)) < best
    assert sd.best_k(0.8, c=0.1, overhead=0.5) > best


def test_the_recorded_real_model_gains_from_packed_weights() -> None:
    seconds = json.loads((ROOT / "benchmarks/results/real_model.json").read_text(encoding="utf-8"))["step_seconds"]
    packed, plain = ({int(n): s for n, s in seconds[way].items()} for way in ("auto", "plain"))
    assert packed[1] < plain[1]
    assert packed[5] / packed[1] == pytest.approx(1, abs=0.05)
    assert plain[2] / plain[1] > 1.4
    assert all(0.028 < packed[n] < 0.037 for n in range(1, 7))


def test_the_heads_cost_and_draft_as_lesson_10_says() -> None:
    """By the model card, whose figures were measured in one run."""
    card = json.loads((ROOT / "specdec_ref" / "pretrained" / "measurements.json").read_text(encoding="utf-8"))
    draft, heads = card["drafts"]["draft-medium"], card["heads"]
    feature, parallel = heads["head-feature"], heads["head-parallel"]
    assert feature["c"] / draft["c"] == pytest.approx(2 / 3, abs=0.1)
    assert feature["rounds"]["tokens_per_round"] > draft["rounds"]["tokens_per_round"]
    one_pass = 4 * parallel["c"]  # of the four tokens that were timed together
    assert one_pass < feature["c"]


def test_the_gain_of_block_verification_is_largest_at_the_corners_of_the_explorer() -> None:
    """Lesson 10: at p = 0.1 and q = 0.9, and the reverse. The sliders move in steps of 0.1."""

    def gain(p: float, q: float) -> float:
        target, draft = (torch.tensor([[x, 1 - x]] * 2, dtype=torch.float64) for x in (p, q))
        block, token = (enumerate_rounds(target, draft, 4, rule)[1] for rule in (True, False))
        return block / token - 1

    settings = [(p / 10, q / 10) for p in range(1, 10) for q in range(1, 10)]
    gains = {setting: gain(*setting) for setting in settings}
    largest = max(gains.values())
    assert {setting for setting, value in gains.items() if value > largest - 1e-9} == {(0.1, 0.9), (0.9, 0.1)}
